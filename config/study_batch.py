# python compare.py config/study_batch.py
# python compare.py --max_iters=1680 config/study_batch.py --out_dir=out/study_batch_20
# Is a lead measured in steps or in tokens? study_budget.py found -0.21 after 420 steps of 1,024 tokens (1.25 tokens a
# parameter) and -0.08 after 1,680 (5); here are 420 steps of 4,096, which are 5 tokens a parameter. And the question
# that practice answers by habit: under Muon, do the tables need a rate of their own? All arms are searched equally: 12
# points at a quarter of the steps, the best 3 in full, the best with the verdict's seeds. Muon iterates in float32, as
# most CPUs emulate bfloat16. About 80 minutes on one core.
max_iters = max_iters if max_iters < 600000 else 420
include("study_budget.py")
out_dir = "out/study_batch"
batch_size, eval_iters = 32, 32  # 131,072 tokens a half, as in study_seeds
eval_interval = max_iters

baseline = "adamw"
_muon = "--optimizer=muon --muon_dtype=float32"
arms = {
    "adamw": "--blockwise=False",
    "fitted": "--lr_rule=fitted",
    "muon, one rate": f"--blockwise=False {_muon}",
    "muon, fast tables": f"--lr_rule=tables {_muon}",  # 4x, times what the search gives it
}
learning_rates = {arm: [2e-3 if arm == "fitted" else 8e-3] for arm in arms}
untuned = []
tune = {}
search, points, search_seed = "sobol", 12, 11
rungs = [[0.25, 1, 3], [1, 1, 1]]
space = {
    "learning_rate": [1 / 8, 8, "log"],
    "warmup_iters": [max_iters // 50, max_iters * 7 // 10],
    "beta2": [0.95, 0.999, "log"],
    "weight_decay": [0.001, 0.1, "log"],
    "lr_mult.Emb+Head": [1 / 4, 4, "log"],
}
seeds = [101, 102, 103, 104]
