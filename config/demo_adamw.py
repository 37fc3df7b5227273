# torchrun --standalone --nproc_per_node=2 train.py config/demo.py config/demo_adamw.py
# The plain AdamW baseline of the demo: one rate for all blocks, found by as many runs as the paper's multipliers got.
out_dir = "out/demo/adamw"
blockwise = False

# The best of four runs with seed 1: 2e-3 4.333, 4e-3 4.157, 8e-3 4.167; 4e-3 with a warmup of 30 % 4.165
learning_rate = 4e-3
warmup_iters = max_iters // 2
# Expected: validation loss 4.189 on two processes; on one, batch_size=8: 4.172, 4.157 and 4.140 (seeds 1337, 1, 2)
