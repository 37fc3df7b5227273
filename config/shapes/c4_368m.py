# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/c4.py config/shapes/c4_368m.py
# 368M of the paper's scaling law on C4 (chosen here; see config/README.md): 368.4M parameters without the output layer.
out_dir = "out/c4_368m"
wandb_run_name = "c4_368m"
n_layer, n_head, n_embd, n_inner = 20, 16, 1024, 4096
max_iters = round(20 * 368.4e6 / (batch_size * gradient_accumulation_steps * block_size))  # 20 tokens a parameter
lr_decay_iters = max_iters
