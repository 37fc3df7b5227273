# torchrun --standalone --nproc_per_node=2 train.py config/demo.py config/demo_adamw.py
# The plain AdamW baseline of the demo, at its own best learning rate and the same budget.
out_dir = "out/demo/adamw"
blockwise = False

# The best of 5e-4 (1.516), 1e-3 (1.511), 2e-3 (1.500), 4e-3 (1.484) and 8e-3 (1.507): final validation loss, one seed
learning_rate = 4e-3
min_lr = learning_rate / 20
# Expected: validation loss 1.482 in nats per byte; 1.495 with --seed=1 and with --seed=2
