"""ema_decay: an exponential moving average of the weights (arXiv 1412.6980, section 7.2), evaluated beside them."""

from contextlib import contextmanager

import torch

from blockwise.optimizers import local
from blockwise.sharded_files import shard_like


class EMA:
    """e <- d e + (1 - d) p after each update, d = min(ema_decay, (1 + n) / (10 + n)) for update n, so that the average
    of a short run is not of its random start."""

    def __init__(self, model, decay, checkpoint):
        """Continues the checkpoint's average; where it has none, the average begins at the weights."""
        self.decay, self.model, self.weights, self.updates = decay, model, {}, 0
        if self.decay > 0:
            saved = (checkpoint and checkpoint["ema"]) or {}
            self.updates = saved.get("updates", 0)
            for name, p in model.named_parameters():
                own = shard_like(saved["weights"][name], p) if saved else p.detach().clone()
                self.weights[name] = own.to(p)

    @torch.no_grad()
    def update(self):
        if self.weights:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            new = [local(p.detach()) for _, p in self.model.named_parameters()]
            torch._foreach_lerp_([local(own) for own in self.weights.values()], new, 1 - decay)
            self.updates += 1

    def evaluate(self, evaluate):
        """The losses that evaluate() finds with the average in the weights' place, each key with _ema; {} where off."""
        if not self.weights:
            return {}
        with self.in_the_weights_place():
            return {f"{key}_ema": value for key, value in evaluate().items()}

    @contextmanager
    def in_the_weights_place(self):
        """Inside, the model's parameters hold the average, and the average holds them: nothing is copied,
        but for FSDP, which keeps addresses of its own."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self):
        for name, p in self.model.named_parameters():
            if (mine := local(p)) is not p:
                average = local(self.weights[name])
                kept = mine.clone()
                mine.copy_(average)
                average.copy_(kept)
                continue
            p.data, self.weights[name] = self.weights[name], p.data

    def state_dict(self):
        """ema: None where off, else the average under every name that the model's own state has, and its updates."""
        if not self.weights:
            return {"ema": None}
        name_of = {p: name for name, p in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)  # a tied matrix has two
        return {"ema": {"weights": {name: self.weights[name_of[p]] for name, p in every}, "updates": self.updates}}
