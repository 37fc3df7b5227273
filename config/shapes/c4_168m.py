# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/c4.py config/shapes/c4_168m.py
# 168M of the paper's scaling law on C4 (the 0.25B shape): 167.1M parameters without the output layer.
out_dir = "out/c4_168m"
wandb_run_name = "c4_168m"
n_layer, n_head, n_embd, n_inner = 8, 16, 1024, 4096
max_iters = round(20 * 167.1e6 / (batch_size * gradient_accumulation_steps * block_size))  # 20 tokens a parameter
lr_decay_iters = max_iters
