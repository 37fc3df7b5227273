# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_small.py
# GPT-2 small (124M), the shape that train.py has by default, on OpenWebText.
include("openwebtext.py")
out_dir = "out/gpt2_small"
wandb_run_name = "gpt2_small"
# Expected: not measured here; the paper's figure shows 2.917, and 2.966 for AdamW, at the batch of its runs
