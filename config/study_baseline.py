# python compare.py config/study_baseline.py
# How good is AdamW once it is tuned in full, at the shape of the earlier studies? Rate, beta2 and warmup,
# one after the other until nothing improves, from where study_budget.py ended at half the width. `fitted` gets the same
# and comes as it is too. 1.9M parameters with their vocabulary, on English Wikipedia.
# Longer: python compare.py --max_iters=2000 config/study_baseline.py --out_dir=out/study_baseline_2000
max_iters = max_iters if max_iters < 600000 else 500
include("shapes/llama_1m_study.py")
out_dir = "out/study_baseline"
dataset = "wikipedia_bpe4096"

min_lr = 0.0  # for every arm
weight_decay, beta2 = 0.1, 0.95

eval_interval = max_iters // 5
log_interval = 20
test_loss = True  # tuned on one half of the validation text, reported on the other

arms = {
    "adamw": f"--blockwise=False --warmup_iters={max_iters // 2} --weight_decay=0",
    "fitted": "--lr_rule=fitted",
    "fitted, as it is": "--lr_rule=fitted",
}
learning_rates = {"adamw": [2e-3, 4e-3, 8e-3], "fitted": [1e-3, 2e-3, 4e-3], "fitted, as it is": [1e-3]}
untuned = ["fitted, as it is"]
tune = {
    "beta2": [0.95, 0.99, 0.999],
    "warmup_iters": [max_iters // 10, 3 * max_iters // 10, max_iters // 2],
}  # 0.1 or none as weight decay differ by 0.001 for AdamW and 0.003 for `fitted`
floors = {"floor 0": ""}
seeds = [1, 2, 3]
