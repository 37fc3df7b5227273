"""Which of torch's schedulers keep the ratios of the blocks' rates: QK's over Norm's, the most that it moves in a run.

python examples/torch_schedulers.py
"""

import torch
from torch.optim import lr_scheduler as schedulers

from blockwise.blocks import param_groups
from blockwise.schedules import rate_lambdas

STEPS = 20
NAMED = {"attn.q_proj.weight": torch.nn.Parameter(torch.ones(2, 2)), "norm.weight": torch.nn.Parameter(torch.ones(2))}


def groups():
    return param_groups(NAMED.items(), lr=1e-3)  # QK at 8e-3, Norm at 1e-3


PEAKS = [group["lr"] for group in groups()]
SCHEDULERS = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 1 - step / STEPS),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, 1.0, STEPS),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingLR(eta_min)": lambda o: schedulers.CosineAnnealingLR(o, STEPS, eta_min=1e-4),
    "OneCycleLR(one max_lr)": lambda o: schedulers.OneCycleLR(o, 8e-3, STEPS),
    "OneCycleLR(max_lr of each group)": lambda o: schedulers.OneCycleLR(o, PEAKS, STEPS),
    "LambdaLR(rate_lambdas): one floor for all, the paper's rule": lambda o: schedulers.LambdaLR(
        o, rate_lambdas(o.param_groups, floor=1e-4, warmup=4, end=STEPS)
    ),
}
for name, make in SCHEDULERS.items():
    optimizer = torch.optim.AdamW(groups())
    scheduler, ratios = make(optimizer), []
    for _ in range(STEPS - 1):
        ratios.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[1]["lr"])
        optimizer.step()
        scheduler.step()
    print(f"{'keeps' if max(ratios) - min(ratios) < 1e-6 and ratios[0] > 7 else 'breaks'}  {name}")
