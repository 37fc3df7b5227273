# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_small.py config/gpt2_small_adamw.py
# The plain AdamW baseline of gpt2_small.
out_dir = "out/gpt2_small_adamw"
wandb_run_name = "gpt2_small_adamw"
blockwise = False
