# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/c4.py
# C4 in place of OpenWebText, after any model and before a shape of the scaling law: T5's vocabulary, 512 sequences of
# 256 tokens a step. The paper cuts each document at 256 tokens; here documents follow each other.
out_dir += "_c4"
dataset = "c4"
wandb_run_name += "_c4"

batch_size = 64
block_size = 256
gradient_accumulation_steps = 8
eval_iters = 50
max_iters = 30000
lr_decay_iters = max_iters
warmup_iters = 1000
min_lr = learning_rate / 10
