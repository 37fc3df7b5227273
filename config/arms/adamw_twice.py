# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/adamw_twice.py
# The plain AdamW baseline with twice the steps, to read the speedup from, after any model and data set.
out_dir += "_adamw_twice"
wandb_run_name += "_adamw_twice"

blockwise = False
max_iters *= 2
lr_decay_iters *= 2
