"""A loop of your own under Accelerate; every block decays from its own peak to one common floor, the paper's rule.

accelerate launch examples/accelerate_loop.py [FOLDER]     # again: continues from FOLDER
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM

from blockwise.blocks import param_groups
from blockwise.schedules import rate_lambdas

folder = Path(sys.argv[1] if sys.argv[1:] else "out/accelerate_loop")
torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1), betas=(0.9, 0.95))
loader = torch.utils.data.DataLoader(torch.randint(64, (160, 16)), batch_size=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
# Not prepared: Accelerate would step it once a process. The four lines of a common floor:
scheduler = LambdaLR(optimizer.optimizer, rate_lambdas(optimizer.param_groups, floor=1e-4, warmup=4, end=20))
accelerator.register_for_checkpointing(scheduler)
if folder.exists():
    accelerator.load_state(folder)
for ids in loader:
    with accelerator.accumulate(model):
        loss = model(input_ids=ids, labels=ids).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    if accelerator.sync_gradients:
        rates = {group["block"]: f"{group['lr']:.2e}" for group in optimizer.param_groups}
        accelerator.print(scheduler.last_epoch, f"{loss.item():.3f}", rates)
        scheduler.step()
accelerator.save_state(folder)
