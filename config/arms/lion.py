# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/lion.py
# Lion in place of AdamW, with its own betas and weight decay; the paper's learning rate is not published, and Lion's
# authors advise a third to a tenth of AdamW's. With config/arms/adamw.py behind it, its baseline.
out_dir += "_lion"
wandb_run_name += "_lion"

optimizer = "lion"
learning_rate /= 5
min_lr /= 5
