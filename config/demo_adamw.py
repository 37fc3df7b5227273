# torchrun --standalone --nproc_per_node=2 train.py config/demo.py config/demo_adamw.py
# The plain AdamW baseline of the demo, at its own best learning rate and the same budget.
out_dir = "out/demo/adamw"
blockwise = False

# The best of 1e-3 (AD1), 2e-3 (1.501), 4e-3 (1.502), 8e-3 (1.512): final validation loss, one seed
learning_rate = 2e-3
min_lr = learning_rate / 20
# Expected: validation loss 1.501 +- 0.01 nats per byte
