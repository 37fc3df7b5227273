# torchrun --standalone --nproc_per_node=8 train.py config/openwebtext.py
# OpenWebText at the paper's context, steps and warmup: 491,520 tokens a step on 8, 4, 2 or 1 GPUs. Models include it.
dataset = "openwebtext"

# Micro-steps as large as 80 GB hold; on a smaller card --batch_size=12 --gradient_accumulation_steps=40, say
batch_size = 60
block_size = 1024
gradient_accumulation_steps = 8
max_iters = 50000
lr_decay_iters = max_iters
warmup_iters = 1000
learning_rate = 6e-4
min_lr = learning_rate / 20

eval_interval = 1000
eval_iters = 40  # batches, which are 2,400 sequences
log_interval = 10
