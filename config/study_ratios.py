# python compare.py config/study_ratios.py
# What do the multipliers want to be at this size? Every block's rate and the warmup are drawn at random, independently
# of each other, around "emb 20x" of study_cpu_long.py; the report has every loss. Half an hour, two cores.
from scipy.stats.qmc import LatinHypercube

max_iters = 500
include("shapes/llama_1m_study.py")
out_dir = "out/study_ratios"
dataset = "kjv_bpe4096"

eval_interval = 250
log_interval = 10
sharpness_interval = 10

_center = {"Emb": 20, "Head": 20, "QK": 4, "VO": 4, "FFN": 4, "Norm": 1}
_range = 4  # to either side, as a factor; drawn log-uniformly
_draws = LatinHypercube(len(_center) + 1, rng=0).random(40)  # in [0, 1)


def _words(draw):
    words = [f"--lr_mult.{b}={m * _range ** (2 * u - 1):.3g}" for (b, m), u in zip(_center.items(), draw, strict=False)]
    return " ".join([*words, f"--warmup_iters={max_iters * 0.02 * 10 ** draw[-1]:.0f}"])  # 2 to 20 % of the run


_emb20 = " ".join(f"--lr_mult.{block}={mult}" for block, mult in _center.items())
arms = {
    "adamw": "--blockwise=False",
    "blockwise": "",
    "emb 20x": _emb20,
    "emb 20x, no decay of tables": _emb20 + " --wd_mult.Emb=0 --wd_mult.Head=0",
    "emb 20x, no decay of norms": _emb20 + " --wd_mult.Norm=0",
}
learning_rates = {arm: [5e-4] for arm in arms} | {"adamw": [2e-3, 4e-3, 8e-3], "blockwise": [2.5e-4, 5e-4]}
for _number, _draw in enumerate(_draws):
    arms[f"draw {_number:02}"] = _words(_draw)
    learning_rates[f"draw {_number:02}"] = [5e-4]
extensions = 0
floors = {"relative floor": "--min_lr_ratio=0.05"}
seeds = [1]
