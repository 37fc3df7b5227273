# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/adamw.py
# The plain AdamW baseline, after any model.
out_dir += "_adamw"
wandb_run_name += "_adamw"

blockwise = False
