# python compare.py config/study_rule.py
# Two fixed rules, rates included, against a swept AdamW, at two thirds of the steps of study_cpu_long.py, so that their
# losses can also be read against AdamW's there: "emb 20x" of that study, and "fitted", which study_ratios.py suggests.
max_iters = 666
include("shapes/llama_1m_study.py")
out_dir = "out/study_rule"

eval_interval = 111
log_interval = 20

arms = {
    "adamw": "--blockwise=False",
    "emb 20x": "--lr_mult.Emb=20 --lr_mult.Head=20 --lr_mult.QK=4 --lr_mult.VO=4 --lr_mult.FFN=4",
    "fitted": "--lr_mult.Emb=12 --lr_mult.Head=12 --lr_mult.QK=4 --lr_mult.VO=1 --lr_mult.FFN=1",
}
learning_rates = {"adamw": [2e-3, 4e-3, 8e-3], "emb 20x": [5e-4], "fitted": [1e-3]}
extensions = 0  # the rules come with their rates; AdamW is best in the middle of its grid
floors = {"relative floor": "--min_lr_ratio=0.05"}
conditions = {"King James, BPE": "--dataset=kjv_bpe4096", "Python library, BPE": "--dataset=pylib_bpe4096"}
seeds = [1, 2, 3]
