# torchrun --standalone --nproc_per_node=2 train.py config/demo.py
# The demo: a LLaMA of 0.34M parameters on the King James Bible by a BPE of 1,024 tokens, in a minute on two CPU cores.
# Data: python data/kjv/prepare.py --tokenizer=bpe:1024
include("shapes/llama_1m.py")
out_dir = "out/demo/blockwise"
dataset = "kjv_bpe1024"
n_embd, n_head, n_inner = 64, 2, 192

max_iters = 420
lr_decay_iters = max_iters
min_lr = 0.0  # for both arms: a floor is another knob
weight_decay = 0.0

# The best of four runs with seed 1: 5e-4 4.111, 1e-3 4.039, 2e-3 4.095; 1e-3 with a warmup of half 4.060
learning_rate = 1e-3
warmup_iters = 3 * max_iters // 10

eval_interval = 70
eval_iters = 48
log_interval = 10
always_save_checkpoint = False
# Expected: validation loss 4.052 on two processes; on one, batch_size=8: 4.035, 4.039 and 4.011 (seeds 1337, 1, 2)
