# torchrun --standalone --nproc_per_node=2 train.py config/demo.py
# A LLaMA of about a million parameters on the King James Bible, byte by byte: two minutes on two CPU cores.
out_dir = "out/demo/blockwise"
dataset = "kjv"

model_type = "llama"
n_layer = 4
n_head = 4
n_embd = 128
block_size = 128

batch_size = 8
gradient_accumulation_steps = 2  # 2 x 8 x 128 = 2,048 tokens a step
max_iters = 700
lr_decay_iters = max_iters
warmup_iters = 70
learning_rate = 5e-4
min_lr_ratio = 0.05

eval_interval = 100
eval_iters = 25
log_interval = 10
