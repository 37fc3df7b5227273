# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/shapes/tinyllama.py
# The paper's LLaMA 1.1B: 1175.0M parameters with GPT-2's vocabulary.
out_dir = "out/tinyllama"
wandb_run_name = "tinyllama"
n_layer, n_head, n_kv_head, n_embd, n_inner = 22, 32, 4, 2048, 5632

batch_size, gradient_accumulation_steps = 12, 40  # more would not fit beside the weights of this size
eval_iters = 200
