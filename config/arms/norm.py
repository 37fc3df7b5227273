# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/norm.py
# The paper's ablation: the norms alone boosted, twofold (by a summary of the paper).
out_dir += "_norm"
wandb_run_name += "_norm"

lr_mult = dict(Emb=1, QK=1, VO=1, FFN=1, Norm=2, Head=1)
