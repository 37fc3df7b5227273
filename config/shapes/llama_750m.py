# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/shapes/llama_750m.py
# The paper's LLaMA 0.75B: 743.4M parameters with GPT-2's vocabulary.
out_dir = "out/llama_750m"
wandb_run_name = "llama_750m"
n_layer, n_head, n_embd, n_inner = 13, 26, 1664, 6656

batch_size, gradient_accumulation_steps = 12, 40  # more would not fit beside the weights of this size
eval_iters = 200
