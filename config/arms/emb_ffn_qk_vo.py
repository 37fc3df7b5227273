# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/emb_ffn_qk_vo.py
# The paper's ablation: all but the norms boosted. Whether its output layer was is not published: here it is not,
# unlike with the default multipliers.
out_dir += "_emb_ffn_qk_vo"
wandb_run_name += "_emb_ffn_qk_vo"

lr_mult = dict(Emb=10, QK=8, VO=4, FFN=6, Norm=1, Head=1)
