# python compare.py config/study_blocks.py
# Which block wants another rate than the one that AdamW has for all? From the AdamW that study_budget.py tuned in full,
# one kind of block at a time is three times as fast or a quarter as fast, and the rate of all is swept again. The shape
# and the budget of study_budget.py.
include("study_budget.py")
out_dir = "out/study_blocks"

_changes = {
    "Emb 3x": ("Emb", 3),
    "Head 3x": ("Head", 3),
    "Emb and Head 3x": ("Emb Head", 3),
    "QK 3x": ("QK", 3),
    "VO 0.25x": ("VO", 0.25),
    "FFN 0.25x": ("FFN", 0.25),
    "VO and FFN 0.25x": ("VO FFN", 0.25),
}
arms = {"adamw": f"{_adamw_found} --blockwise=False"}
for _name, (_blocks, _factor) in _changes.items():
    _rates = {_block: 1 for _block in ("Emb", "Head", "QK", "VO", "FFN")} | dict.fromkeys(_blocks.split(), _factor)
    arms[_name] = " ".join([_adamw_found, *(f"--lr_mult.{_block}={_rate}" for _block, _rate in _rates.items())])

learning_rates = {arm: [2e-3, 4e-3, 8e-3] for arm in arms}
untuned = []
tune = {}
