# python compare.py config/study_gpu_124m.py
# Second step after config/study_gpu.py: GPT-2 of 124M parameters on 2.5 billion tokens of OpenWebText (20 a parameter).
# AdamW against the two arms with the best prospects, each with the same eight points around what is known. Not run: at
# 40 % of an H100's dense bfloat16 rate, which is predicted, a run takes 1.5 hours of one GPU, an arm 5 runs of search
# and 3 seeds, the study 36 GPU hours. Each run has a GPU of its own; --processes=8 gives it eight.
include("gpt2_small.py")
out_dir = "out/study_gpu_124m"

max_iters = max_iters if max_iters < 50000 else 5086  # x 491,520 tokens a step = 2.5 billion
lr_decay_iters = max_iters
warmup_iters = max_iters // 10
min_lr = 0.0
weight_decay, beta2 = 0.1, 0.95
eval_interval = max(max_iters // 10, 1)
eval_iters = 20  # batches of 60
test_loss = full_eval = True

arms = {"adamw": "--blockwise=False", "tables": "--lr_rule=tables", "muon, tables": "--optimizer=muon --lr_rule=tables"}
learning_rates = {arm: [6e-4, 1.2e-3, 2.4e-3] for arm in arms}
search = "sobol"
points = 8
rungs = [[0.25, 1, 3], [1.0, 1, 1]]
space = {
    "learning_rate": [0.5, 4, "log"],
    "warmup_iters": [max_iters // 20, max_iters // 2],
    "beta2": [0.9, 0.99, "log"],
    "weight_decay": [0.0, 0.3],
    "lr_mult.Emb+Head": [0.5, 4, "log"],
}
floors = {"floor 0": ""}
seeds = [101, 102, 103]
