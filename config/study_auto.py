# python compare.py config/study_auto.py
# Multipliers from measurement (lr_mult=auto) beside the paper's, a hand-made ratio, and AdamW: measured at 2 % of the
# run, as by default, or "late", at 20 %, when the learning rate has long warmed up; there with three powers. Half an
# hour on two CPU cores.
max_iters = 500
include("shapes/llama_1m_study.py")
out_dir = "out/study_auto"

eval_interval = 100
log_interval = 10

_late = f"--lr_mult=auto --auto_mult_step={max_iters // 5}"
arms = {
    "adamw": "--blockwise=False",
    "blockwise": "",
    "emb 20x": "--lr_mult.Emb=20 --lr_mult.Head=20 --lr_mult.QK=4 --lr_mult.VO=4 --lr_mult.FFN=4",
    "auto": "--lr_mult=auto",
    "auto late": _late,
    "auto late, p 0.4": _late + " --auto_mult_power=0.4",
    "auto late, p 1": _late + " --auto_mult_power=1.0",
}
learning_rates = {"adamw": [2e-3, 4e-3, 8e-3], "blockwise": [2.5e-4, 5e-4, 1e-3], "emb 20x": [5e-4]}
learning_rates |= {"auto": [1e-3, 2e-3, 4e-3], "auto late": [1e-3, 2e-3, 4e-3]}
learning_rates |= {"auto late, p 0.4": [2e-3], "auto late, p 1": [2e-3]}
extensions = 2
floors = {"relative floor": "--min_lr_ratio=0.05"}
conditions = {"King James, BPE": "--dataset=kjv_bpe4096", "Python library, BPE": "--dataset=pylib_bpe4096"}
seeds = [1, 2, 3]
