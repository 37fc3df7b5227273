# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/shapes/llama_230m.py
# The paper's LLaMA 0.23B: 228.3M parameters with GPT-2's vocabulary.
out_dir = "out/llama_230m"
wandb_run_name = "llama_230m"
n_layer, n_head, n_embd, n_inner = 16, 12, 768, 3072
