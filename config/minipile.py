# torchrun --standalone --nproc_per_node=4 train.py config/llama_250m.py config/minipile.py
# MiniPile in place of OpenWebText, after any model: the paper's context, steps and warmup; 300 sequences a step.
out_dir += "_minipile"
dataset = "minipile"
wandb_run_name += "_minipile"

batch_size = 75
block_size = 512
gradient_accumulation_steps = 4
max_iters = 30000
lr_decay_iters = max_iters
warmup_iters = 600
# Expected: not measured here; the paper's figure shows 2.378 for LLaMA 0.25B, and 2.429 for AdamW
