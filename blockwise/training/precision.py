"""dtype: autocast, and in float16 the scaling of the loss that keeps small gradients from vanishing."""

import torch

from blockwise.hardware import autocast


class Precision:
    """Mixed precision (arXiv 1710.03740). Weights stay in float32; in float32 and bfloat16 nothing is scaled."""

    def __init__(self, config, device):
        self.autocast = autocast(device, getattr(torch, config.dtype))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer):
        self.scaler.unscale_(optimizer)

    @property
    def may_overflow(self):
        """Whether a gradient norm that is not finite may only mean that the scale was too large, which then falls."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def step(self, optimizer):
        self.scaler.step(optimizer)

    def update(self):
        self.scaler.update()

    def state_dict(self):
        return {"scaler": self.scaler.state_dict()}

    def load_state_dict(self, checkpoint):
        if checkpoint["scaler"]:  # empty where float16 was off
            self.scaler.load_state_dict(checkpoint["scaler"])
