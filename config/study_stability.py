# python compare.py config/study_stability.py
# What helps at a learning rate that is deliberately too high? A deep and narrow LLaMA, without gradient clipping, which
# is a remedy of its own and so an arm. At this size the loss then neither spikes nor diverges: it stays high.
max_iters = 400
include("shapes/llama_1m_study.py")
out_dir = "out/study_stability"
dataset = "kjv_bpe4096"  # with bytes the loss only settles at a high level

n_layer, n_embd, n_inner, block_size = 8, 64, 192, 64
grad_clip = 0.0
arch_warmup_interval = warmup_iters

eval_interval = 100
log_interval = 1  # so that no spike is missed

arms = {
    "plain": "",
    "plain at 1/2": "",
    "plain at 1/16": "",
    "warmup x4": f"--warmup_iters={4 * warmup_iters}",
    "grad_clip": "--grad_clip=1",
    "arch_warmup": "--arch_warmup=True",
    "qk_norm": "--qk_norm=True",
    "qk_clip": "--qk_clip=100",
    "logit_softcap": "--logit_softcap=30",
    "z_loss": "--z_loss=1e-4",
}
baseline = "plain"
learning_rates = {arm: [1.6e-2] for arm in arms} | {"plain at 1/2": [8e-3], "plain at 1/16": [1e-3]}
extensions = 0  # no sweep: each arm at the one rate above
floors = {"relative floor": "--min_lr_ratio=0.05"}
seeds = [1, 2, 3, 4, 5]
