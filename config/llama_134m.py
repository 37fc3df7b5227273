# torchrun --standalone --nproc_per_node=8 train.py config/llama_134m.py
# The paper's LLaMA 0.13B (133.9M parameters with GPT-2's vocabulary) on OpenWebText.
include("openwebtext.py")
out_dir = "out/llama_134m"
wandb_run_name = "llama_134m"

model_type = "llama"
n_layer, n_head, n_embd, n_inner = 6, 12, 768, 3072
# Expected: not measured here
