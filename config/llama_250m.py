# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py
# The paper's LLaMA 0.25B (237.3M parameters with GPT-2's vocabulary) on OpenWebText.
include("openwebtext.py")
out_dir = "out/llama_250m"
wandb_run_name = "llama_250m"

model_type = "llama"
n_layer, n_head, n_embd, n_inner = 8, 16, 1024, 4096
# Expected: not measured here; the paper's figure shows 2.776, and 2.834 for AdamW, at the batch of its runs
