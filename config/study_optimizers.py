# python compare.py config/study_optimizers.py
# The demo's LLaMA by each optimizer, each blockwise at the best of its own sweep: 25 minutes on two cores.
out_dir = "out/study_optimizers"
dataset = "kjv"

model_type = "llama"
n_layer = 4
n_head = 4
n_embd = 128
n_inner = 384
block_size = 128

batch_size = 8
gradient_accumulation_steps = 1  # x 8 sequences x 128 tokens = 1,024 tokens a step
max_iters = 1200
lr_decay_iters = max_iters
warmup_iters = max_iters // 10

eval_interval = 200
eval_iters = 25
log_interval = 20

arms = {
    "adamw": "",
    "adam_mini": "--optimizer=adam_mini",
    "lion": "--optimizer=lion",
    "muon": "--optimizer=muon",
}
learning_rates = {
    "adamw": [1.25e-4, 2.5e-4, 5e-4],
    "adam_mini": [1.25e-4, 2.5e-4, 5e-4],
    "lion": [2e-5, 4e-5, 8e-5],
    "muon": [2.5e-4, 5e-4, 1e-3],
}
floors = {"relative floor": "--min_lr_ratio=0.05"}
seeds = [1]
