# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py
# The paper's LLaMA 0.25B (237.3M parameters with GPT-2's vocabulary) on OpenWebText: 491,520 tokens a step.
out_dir = "out/llama_250m"
dataset = "openwebtext"
wandb_run_name = "llama_250m"

model_type = "llama"
n_layer = 8
n_head = 16
n_embd = 1024
n_inner = 4096

batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 50000
lr_decay_iters = max_iters
warmup_iters = 1000
learning_rate = 6e-4
min_lr = learning_rate / 20

eval_interval = 1000
log_interval = 10
# Expected: not measured here; the paper's figure shows 2.776, and 2.834 for AdamW, at the batch of its runs
