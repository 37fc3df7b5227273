# python compare.py config/study_cpu_long.py
# Does the answer of study_cpu.py hold on another corpus, with more text, against a baseline of twice the steps? Does it
# depend on the ratio of embedding and output layer to the matrices? An hour and a half on two CPU cores.
max_iters = 1000
include("shapes/llama_1m_study.py")
out_dir = "out/study_cpu_long"
min_lr = 2e-5  # the absolute floor of every run, whatever its learning rate
eval_interval = 100
log_interval = 20

arms = {
    "adamw": "--blockwise=False",
    "blockwise": "",
    "emb 20x": "--lr_mult.Emb=20 --lr_mult.Head=20 --lr_mult.QK=4 --lr_mult.VO=4 --lr_mult.FFN=4",
}
learning_rates = {
    "adamw": [2e-3, 4e-3, 8e-3],
    "blockwise": [1.25e-4, 2.5e-4, 5e-4],
    "emb 20x": [2.5e-4, 5e-4, 1e-3],
}
seeds = [1, 2, 3]
conditions = {"King James, BPE": "--dataset=kjv_bpe4096", "Python library, BPE": "--dataset=pylib_bpe4096"}
floors = {"relative floor": "--min_lr_ratio=0.05"}
twice = True
