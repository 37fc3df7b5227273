# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/emb.py
# The paper's ablation: only the embedding boosted.
out_dir += "_emb"
wandb_run_name += "_emb"

lr_mult = dict(Emb=10, QK=1, VO=1, FFN=1, Norm=1, Head=1)
