# python compare.py config/study_exponents.py
# How do the good rates move with width, depth, batch and vocabulary? A grid of three by three around `fitted` in each
# condition (tables, and VO with FFN, each halved and doubled) shows the exponents; the rules come as they are, beside
# an AdamW with a swept rate. One seed a point: a map. The shape of study_budget.py but for what the condition names,
# and the same number of steps everywhere. About 220 runs.
include("study_budget.py")
out_dir = "out/study_exponents"
max_iters = lr_decay_iters = 420
warmup_iters = max_iters // 10
weight_decay = 0.1

_fitted = "--lr_rule=fitted"
arms = {"adamw": "--blockwise=False"}
for _tables in (6, 12, 24):
    for _matrices in (0.5, 1, 2):
        _rates = f"--lr_mult.Emb={_tables} --lr_mult.Head={_tables} --lr_mult.VO={_matrices} --lr_mult.FFN={_matrices}"
        arms[f"tables {_tables}e-3, matrices {_matrices}e-3"] = f"{_fitted} {_rates}"
arms |= {rule: f"--lr_rule={rule}" for rule in ("relative", "mup", "completep", "large_vocab", "nanochat")}

learning_rates = {arm: [1e-3, 2e-3, 4e-3] if arm == "adamw" else [1e-3] for arm in arms}
untuned = [arm for arm in arms if arm != "adamw"]
tune = {}
seeds = [1]
conditions = {
    "as it is": "",
    "width 32": "--n_embd=32 --n_head=1 --n_inner=96",
    "width 128": "--n_embd=128 --n_head=4 --n_inner=384",
    "width 256": "--n_embd=256 --n_head=8 --n_inner=768",
    "2 layers": "--n_layer=2",
    "8 layers": "--n_layer=8",
    "16 layers": "--n_layer=16",
    "256 tokens a step": "--batch_size=2 --eval_iters=128",
    "4,096 tokens a step": "--batch_size=32 --eval_iters=8",
    "bytes": "--dataset=wikipedia_bytes",
    "vocabulary of 4,096": "--dataset=wikipedia_bpe4096",
    "vocabulary of 16,384": "--dataset=wikipedia_bpe16384",
}
