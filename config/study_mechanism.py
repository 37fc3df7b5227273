# python compare.py config/study_mechanism.py
# Why do fast tables help? Three explanations, each with its own lever: the embedding's initial scale (what counts would
# be the rate over it), the matrices' initial scale (they would limit a single rate), and beta2 of the tables (rare
# rows would be starved by a short memory). One seed a point: a map, not a verdict. study_blocks.py asks which blocks.
include("study_budget.py")
out_dir = "out/study_mechanism"

_fitted = "--lr_rule=fitted"
_adamw = f"--blockwise=False {_adamw_found}"
_wide = " ".join(f"--block_init_std.{block}=0.125" for block in ("QK", "VO", "FFN"))  # 1/sqrt(64), 6 times the default
_tables = "--block_beta2.Emb={0} --block_beta2.Head={0}"

arms = {"adamw": _adamw, "fitted": _fitted}
learning_rates = {"adamw": [2e-3, 4e-3, 8e-3], "fitted": [1e-3]}

# The embedding's initial scale by its rate, all else as in `fitted`; and under one rate
for _std in (0.003, 0.02, 0.1, 1.0):
    for _rate in (4, 12, 40, 120):
        _args = f"--block_init_std.Emb={_std:g} --lr_mult.Emb={_rate:g}"
        arms[f"Emb init {_std:g}, rate {_rate:g}e-3"] = f"{_fitted} {_args}"
for _std in (0.003, 0.1):
    arms[f"adamw, Emb init {_std:g}"] = f"{_adamw} --block_init_std.Emb={_std:g}"

# The matrices' initial scale by the rate of VO and FFN; and under one rate
for _init, _args in (("0.02", ""), ("0.125", _wide)):
    for _rate in (0.5, 1, 2, 4):
        _rates = f"--lr_mult.VO={_rate:g} --lr_mult.FFN={_rate:g}"
        arms[f"matrix init {_init}, rate {_rate:g}e-3"] = f"{_fitted} {_args} {_rates}"
arms["adamw, matrix init 0.125"] = f"{_adamw} {_wide}"

# beta2 of the tables by their rate; and under one rate
for _beta2 in (0.95, 0.99, 0.999):
    for _rate in (4, 12, 40):
        _args = f"{_tables.format(_beta2)} --lr_mult.Emb={_rate:g} --lr_mult.Head={_rate:g}"
        arms[f"tables beta2 {_beta2}, rate {_rate:g}e-3"] = f"{_fitted} {_args}"
arms["adamw, tables beta2 0.999"] = f"{_adamw} {_tables.format(0.999)}"

# `fitted` with one rate less
arms["fitted, Head at 4e-3"] = f"{_fitted} --lr_mult.Head=4"
arms["fitted, QK at 1e-3"] = f"{_fitted} --lr_mult.QK=1"

learning_rates |= {arm: learning_rates["adamw"] if arm.startswith("adamw") else [1e-3] for arm in arms}
untuned = [arm for arm in arms if not arm.startswith("adamw")]
tune = {}
seeds = [1]
