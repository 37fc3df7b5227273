# python compare.py config/study_optimizers.py
# The demo's LLaMA by each optimizer, each blockwise at the best of its own sweep: 25 minutes on two cores.
include("shapes/llama_1m.py")
out_dir = "out/study_optimizers"
dataset = "kjv"

batch_size, gradient_accumulation_steps = 8, 1  # 1,024 tokens a step, as there
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
