"""FSDP2 with one learning rate per block type: shard first, then make the groups, of the sharded parameters.

torchrun --standalone --nproc_per_node=2 examples/fsdp2_loop.py      # GPUs, or processes on a CPU
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM

from blockwise.blocks import describe_blocks, param_groups
from blockwise.schedules import rate_lambdas

device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group()
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config).to(device)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1), betas=(0.9, 0.95))
scheduler = LambdaLR(optimizer, rate_lambdas(optimizer.param_groups, floor=1e-4, warmup=4, end=20))
assert all(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
ids = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(dist.get_rank())).to(device)
for _ in range(20):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
if dist.get_rank() == 0:
    print(describe_blocks(model), f"loss of rank 0 at the end: {loss.item():.3f}", sep="\n")
dist.destroy_process_group()
