# python compare.py config/study_gpu.py
# What would settle it, first step: a LLaMA of 17M parameters on 340 million tokens of OpenWebText (20 a parameter),
# 65,536 tokens a step. Not run: two minutes a run are predicted for an H100, an arm has 22 runs of search and 8 seeds,
# so the five arms take five GPU hours. The data: python data/openwebtext/prepare.py --tokenizer=bpe:8192
# --max_tokens=400000000 --name=openwebtext_bpe8192. Does AdamW gain from tables, or from more ratios than that; and
# does Muon, whose tables AdamW trains, want a rate of its own for them? Second step: config/study_gpu_124m.py
include("shapes/llama_1m.py")
out_dir = "out/study_gpu"
dataset = "openwebtext_bpe8192"
n_layer, n_head, n_embd, n_inner, block_size = 6, 6, 384, 1024, 512
batch_size, gradient_accumulation_steps = 32, 4  # x 512 tokens = 65,536 tokens a step

max_iters = max_iters if max_iters < 50000 else 5188
lr_decay_iters = max_iters
warmup_iters = max_iters // 10
min_lr = 0.0
weight_decay, beta2 = 0.1, 0.95
log_interval = 10
eval_interval = max(max_iters // 10, 1)
eval_iters = 50
test_loss = full_eval = True

arms = {
    "adamw": "--blockwise=False",
    "tables": "--lr_rule=tables",
    "fitted": "--lr_rule=fitted",
    "muon, one rate": "--optimizer=muon --blockwise=False",
    "muon, tables": "--optimizer=muon --lr_rule=tables",
}
learning_rates = {arm: [1e-3, 2e-3, 4e-3] for arm in arms} | {"fitted": [5e-4, 1e-3, 2e-3]}
search = "sobol"
points = 24
rungs = [[0.25, 2, 6], [1.0, 1, 2], [1.0, 2, 1]]
space = {
    "learning_rate": [0.25, 4, "log"],
    "warmup_iters": [max_iters // 50, max_iters * 7 // 10],
    "beta2": [0.9, 0.999, "log"],
    "weight_decay": [0.0, 0.3],
    "lr_mult.Emb+Head": [0.25, 8, "log"],
    "lr_mult.QK": [0.5, 8, "log"],
}
floors = {"floor 0": ""}
seeds = list(range(101, 109))
