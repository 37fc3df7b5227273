# python compare.py config/study_gpu.py
# What would settle it: GPT-2 of 124M parameters on OpenWebText, 2.5 billion tokens (20 a parameter): AdamW, the paper's
# multipliers, `fitted`, and an AdamW with VO and FFN at a quarter of its rate, all tuned alike. At 40 % of an H100's
# dense bfloat16 rate, which is predicted and not measured, a run takes 1.5 hours of one GPU; an arm 8 to 14 runs, and
# the study 50 to 85 GPU hours. --seeds=1,2,3 adds two runs an arm: at 20 tokens a parameter one seed says too little.
# Each run has a GPU of its own; --processes=8 gives it eight. A quarter of the budget shows what to expect:
# python compare.py --max_iters=1272 config/study_gpu.py --out_dir=out/study_gpu_quarter
include("gpt2_small.py")
out_dir = "out/study_gpu"

max_iters = max_iters if max_iters < 50000 else 5086  # x 491,520 tokens a step = 2.5 billion
lr_decay_iters = max_iters
warmup_iters = max_iters // 20
min_lr = 0.0
weight_decay, beta2 = 0.1, 0.95

eval_interval = max(max_iters // 10, 1)
eval_iters = 100
test_loss = True

arms = {
    "adamw": "--blockwise=False",
    "paper": "",
    "fitted": "--lr_rule=fitted",
    "VO and FFN 0.25x": "--lr_mult.Emb=1 --lr_mult.Head=1 --lr_mult.QK=1 --lr_mult.VO=0.25 --lr_mult.FFN=0.25",
}
learning_rates = {
    "adamw": [6e-4, 1.2e-3, 2.4e-3],
    "paper": [1.5e-4, 3e-4, 6e-4],
    "fitted": [2.5e-4, 5e-4, 1e-3],
    "VO and FFN 0.25x": [1.2e-3, 2.4e-3, 4.8e-3],
}
tune = {
    "beta2": [0.95, 0.99],
    "warmup_iters": [max_iters // 20, max_iters // 5, max_iters // 2],
    "weight_decay": [0.0, 0.1, 0.3],
}
floors = {"floor 0": ""}
seeds = [1]
