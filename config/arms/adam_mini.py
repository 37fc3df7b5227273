# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/adam_mini.py
# Adam-mini in place of AdamW, after any model; with config/arms/adamw.py behind it, its baseline.
out_dir += "_adam_mini"
wandb_run_name += "_adam_mini"

optimizer = "adam_mini"
