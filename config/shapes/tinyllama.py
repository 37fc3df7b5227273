# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/shapes/tinyllama.py
# The paper's LLaMA 1.1B: 1175.0M parameters with GPT-2's vocabulary.
out_dir = "out/tinyllama"
wandb_run_name = "tinyllama"

n_layer = 22
n_head = 32
n_kv_head = 4
n_embd = 2048
n_inner = 5632

batch_size, gradient_accumulation_steps = 12, 40  # more would not fit beside the weights of this size
eval_iters = 200
