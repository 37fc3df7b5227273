# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/shapes/llama_900m.py
# The paper's LLaMA 0.9B: 898.3M parameters with GPT-2's vocabulary.
out_dir = "out/llama_900m"
wandb_run_name = "llama_900m"
n_layer, n_head, n_embd, n_inner = 18, 25, 1600, 6400

batch_size, gradient_accumulation_steps = 12, 40  # more would not fit beside the weights of this size
eval_iters = 200
