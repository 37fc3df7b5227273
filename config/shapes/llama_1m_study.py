# torchrun --standalone --nproc_per_node=1 train.py config/shapes/llama_1m_study.py
# What the studies of llama_1m.py share: one process, as many steps as max_iters says where this is included.
include("llama_1m.py")
batch_size, gradient_accumulation_steps = 8, 1  # 1,024 tokens a step
lr_decay_iters = max_iters
warmup_iters = max_iters // 10
eval_iters = 32
