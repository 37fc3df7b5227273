# torchrun --standalone --nproc_per_node=8 train.py config/llama_134m.py config/llama_134m_adamw.py
# The plain AdamW baseline of llama_134m.
out_dir = "out/llama_134m_adamw"
wandb_run_name = "llama_134m_adamw"
blockwise = False
