# torchrun --standalone --nproc_per_node=8 train.py config/llama_250m.py config/shapes/llama_2b.py
# LLaMA 2B. The paper's shape is not published (its figure has the point at 2.03B): this one is ours, with 2,015.5M
# parameters with GPT-2's vocabulary and the head width and feed-forward ratio of the paper's other sizes.
out_dir = "out/llama_2b"
wandb_run_name = "llama_2b"
n_layer, n_head, n_embd, n_inner = 21, 36, 2304, 9216

batch_size, gradient_accumulation_steps = 12, 40  # more would not fit beside the weights of this size
eval_iters = 200
