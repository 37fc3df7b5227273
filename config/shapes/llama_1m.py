# torchrun --standalone --nproc_per_node=2 train.py config/shapes/llama_1m.py
# A LLaMA for two CPU cores: 0.8M parameters and 256 a token of the vocabulary, 1,024 tokens a step. The demo and the
# studies include it.
model_type = "llama"
n_layer, n_head, n_embd, n_inner = 4, 4, 128, 384
block_size = 128
batch_size = 4
gradient_accumulation_steps = 2  # x 4 sequences x 128 tokens = 1,024 tokens a step
