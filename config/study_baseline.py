# python compare.py config/study_baseline.py
# How well is AdamW tuned? The first round of a coordinate search: beta2, warmup and weight decay one by one, each with
# its own sweep of learning rates; `fitted` gets the same three knobs. The next round begins at the best: edit _start.
# Longer: python compare.py --max_iters=2000 config/study_baseline.py --out_dir=out/study_baseline_2000
include("shapes/llama_1m.py")
out_dir = "out/study_baseline"
dataset = "wikipedia_bpe4096"

batch_size, gradient_accumulation_steps = 8, 1  # 1,024 tokens a step
max_iters = max_iters if max_iters < 600000 else 500
lr_decay_iters = max_iters
min_lr = 0.0

eval_interval = max_iters // 5
eval_iters = 32
log_interval = 20

_start = {"beta2": 0.95, "warmup_iters": max_iters // 10, "weight_decay": 0.1}
_steps = [
    {}, {"beta2": 0.99}, {"beta2": 0.999}, {"warmup_iters": max_iters // 50}, {"warmup_iters": 3 * max_iters // 10},
    {"weight_decay": 0.0}, {"weight_decay": 0.5}, {"weight_decay": 1.0},
]  # fmt: skip
_rules = {"adamw": ("--blockwise=False", [2e-3, 4e-3, 8e-3]), "fitted": ("--lr_rule=fitted", [5e-4, 1e-3, 2e-3])}

arms, learning_rates = {}, {}
for _rule, (_args, _rates) in _rules.items():
    for _step in _steps:
        _name = _rule + "".join(f", {key} {value}" for key, value in _step.items())
        arms[_name] = " ".join([_args, *(f"--{key}={value}" for key, value in (_start | _step).items())])
        learning_rates[_name] = _rates
floors = {"floor 0": ""}
seeds = [1]
