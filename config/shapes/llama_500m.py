# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/shapes/llama_500m.py
# The paper's LLaMA 0.5B: 522.0M parameters with GPT-2's vocabulary.
out_dir = "out/llama_500m"
wandb_run_name = "llama_500m"
n_layer, n_head, n_embd, n_inner = 15, 20, 1280, 5120

batch_size, gradient_accumulation_steps = 12, 40  # more would not fit beside the weights of this size
eval_iters = 200
