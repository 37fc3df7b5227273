# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/c4.py config/shapes/c4_630m.py
# 630M of the paper's scaling law on C4 (the 0.75B shape): 629.4M parameters without the output layer.
out_dir = "out/c4_630m"
wandb_run_name = "c4_630m"
n_layer, n_head, n_embd, n_inner = 13, 26, 1664, 6656
max_iters = round(20 * 629.4e6 / (batch_size * gradient_accumulation_steps * block_size))  # 20 tokens a parameter
lr_decay_iters = max_iters
