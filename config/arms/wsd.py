# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/arms/wsd.py
# WSD by the paper's rule: boosted until a third, down to the base rate by two thirds, then to the floor.
out_dir += "_wsd"
wandb_run_name += "_wsd"

schedule = "wsd"
wsd_boost = "paper"
min_lr = learning_rate / 10
