# python compare.py config/study_optimizers.py
# The LLaMA of kjv_bytes.py by each optimizer, each blockwise at the best of its own sweep: 25 minutes on two cores.
max_iters = 1200
include("shapes/llama_1m_study.py")
out_dir = "out/study_optimizers"
dataset = "kjv"

eval_interval = 200
eval_iters = 25
log_interval = 20

arms = {"AdamW": "", "Adam-mini": "--optimizer=adam_mini", "Lion": "--optimizer=lion", "Muon": "--optimizer=muon"}
baseline = "AdamW"
learning_rates = {
    "AdamW": [1.25e-4, 2.5e-4, 5e-4],
    "Adam-mini": [1.25e-4, 2.5e-4, 5e-4],
    "Lion": [2e-5, 4e-5, 8e-5],
    "Muon": [2.5e-4, 5e-4, 1e-3],
}
floors = {"relative floor": "--min_lr_ratio=0.05"}
seeds = [1]  # so without a verdict: it is to see that each trains, and at which learning rate
