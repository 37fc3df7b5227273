# python compare.py config/study_cpu.py
# Does blockwise LR help a LLaMA of about a million parameters? On bytes and on a BPE of 4,096 tokens, with both floors:
# about an hour on two CPU cores. `make study` prepares the two data sets and runs it.
max_iters = 600
include("shapes/llama_1m_study.py")
out_dir = "out/study_cpu"
min_lr = 2e-5  # the absolute floor of every run, whatever its learning rate
eval_interval = 100
log_interval = 10

arms = {"adamw": "--blockwise=False", "blockwise": ""}
learning_rates = {
    "adamw": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
    "blockwise": [6.25e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3],
}
seeds = [1, 2, 3]
conditions = {"bytes": "--dataset=kjv", "BPE of 4,096": "--dataset=kjv_bpe4096"}
