# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/emb_ffn.py
# The paper's ablation: embedding and feed-forward layers boosted.
out_dir += "_emb_ffn"
wandb_run_name += "_emb_ffn"

lr_mult = dict(Emb=10, QK=1, VO=1, FFN=6, Norm=1, Head=1)
