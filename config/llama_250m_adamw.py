# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/llama_250m_adamw.py
# The plain AdamW baseline of llama_250m.
out_dir = "out/llama_250m_adamw"
wandb_run_name = "llama_250m_adamw"
blockwise = False
