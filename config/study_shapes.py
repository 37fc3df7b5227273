# python compare.py config/study_shapes.py
# Do the two fixed rules of study_rule.py hold for other shapes, vocabularies and budgets than the one they come from?
# One thing differs in each condition; study_auto.py has the common starting point, 500 steps of the same text. An hour
# and a half, two cores.
include("study_rule.py")
out_dir = "out/study_shapes"
dataset = "pylib_bpe4096"

max_iters = 500
lr_decay_iters = max_iters
warmup_iters = max_iters // 10
eval_interval = 250

learning_rates = {"adamw": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], "emb 20x": [1.25e-4, 2.5e-4, 5e-4, 1e-3], "fitted": [1e-3]}
conditions = {
    "8 layers": "--n_layer=8",
    "width 256": "--n_embd=256 --n_head=8 --n_inner=768",
    "vocabulary of 16,384": "--dataset=pylib_bpe16384",
    "vocabulary of 1,024": "--dataset=pylib_bpe1024",
    "2,000 steps": "--max_iters=2000 --lr_decay_iters=2000 --warmup_iters=200",
}
