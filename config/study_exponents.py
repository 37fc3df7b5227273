# python compare.py config/study_exponents.py
# How do the good rates move with width, batch and vocabulary? In each condition a cross around `fitted` (tables,
# and VO with FFN, each halved and doubled) shows the exponents, beside an AdamW with the warmup and decay that
# study_budget.py found for it and a swept rate. One seed a point: a map. The shape of study_budget.py but for what the
# condition names, and the same number of steps everywhere. About 45 runs.
include("study_budget.py")
out_dir = "out/study_exponents"
max_iters = lr_decay_iters = 420
warmup_iters = max_iters // 10
weight_decay = 0.1

_fitted = "--lr_rule=fitted"
arms = {"adamw": f"--blockwise=False {_adamw_found}"}
_tables = "--lr_mult.Emb={0} --lr_mult.Head={0}"
_matrices = "--lr_mult.VO={0} --lr_mult.FFN={0}"
for _name, _rates, _words in (("tables", (6, 12, 24), _tables), ("matrices", (0.5, 1, 2), _matrices)):
    arms |= {f"{_name}, rate {rate:g}e-3": f"{_fitted} {_words.format(rate)}" for rate in _rates}

learning_rates = {arm: [2e-3, 4e-3, 8e-3] if arm == "adamw" else [1e-3] for arm in arms}
untuned = [arm for arm in arms if arm != "adamw"]
tune = {}
seeds = [1]
conditions = {
    "as it is": "",
    "width 32": "--n_embd=32 --n_head=1 --n_inner=96",
    "width 128": "--n_embd=128 --n_head=4 --n_inner=384",
    "256 tokens a step": "--batch_size=2 --eval_iters=128",
    "bytes": "--dataset=wikipedia_bytes",
}
