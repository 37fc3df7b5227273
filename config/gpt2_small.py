# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_small.py
# GPT-2 small (124M) on OpenWebText: 491,520 tokens a step on 8, 4, 2 or 1 GPUs.
out_dir = "out/gpt2_small"
dataset = "openwebtext"
wandb_run_name = "gpt2_small"

batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 50000
lr_decay_iters = max_iters
warmup_iters = 1000
learning_rate = 6e-4
min_lr = learning_rate / 20

eval_interval = 1000
log_interval = 10
# Expected: not measured here; the paper's figure shows 2.917, and 2.966 for AdamW, at the batch of its runs
