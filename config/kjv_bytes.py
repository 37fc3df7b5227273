# torchrun --standalone --nproc_per_node=2 train.py config/kjv_bytes.py
# A LLaMA of 0.9M parameters on the King James Bible, byte by byte, where no difference to AdamW is seen: some of the
# measurements in docs/ were made with it.
include("shapes/llama_1m.py")
out_dir = "out/kjv_bytes"
dataset = "kjv"

max_iters = 1200
lr_decay_iters = max_iters
warmup_iters = max_iters // 10

# The best of 6.25e-5 (1.503), 1.25e-4 (1.467), 2.5e-4 (1.465) and 5e-4 (1.498): final validation loss, one seed
learning_rate = 2.5e-4
min_lr = learning_rate / 20

eval_interval = 100
eval_iters = 50
log_interval = 10
# Expected: validation loss 1.468 in nats per byte; 1.485 with --seed=1 and with --seed=2
