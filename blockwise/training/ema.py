"""ema_decay: an exponential moving average of the weights (arXiv 1412.6980, section 7.2), evaluated beside them."""

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
                average = shard_like(saved["weights"][name], p) if saved else p.detach().clone()
                self.weights[name] = average.to(p)

    @torch.no_grad()
    def update(self):
        if self.weights:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            new = [local(p.detach()) for _, p in self.model.named_parameters()]
            torch._foreach_lerp_([local(average) for average in self.weights.values()], new, 1 - decay)
            self.updates += 1

    def evaluate(self, evaluate):
        """The losses that evaluate() returns with the average in place of the weights, keys with _ema; {} where off."""
        if not self.weights:
            return {}
        self.swap()
        try:
            return {f"{key}_ema": value for key, value in evaluate().items()}
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self):
        """Exchange the weights and the average, in place."""
        for name, p in self.model.named_parameters():
            weights, average = local(p), local(self.weights[name])
            before = weights.clone()
            weights.copy_(average)
            average.copy_(before)

    def state_dict(self):
        """ema: None where off, else the average under every name that the model's own state has, and its updates."""
        if not self.weights:
            return {"ema": None}
        name_of = {p: name for name, p in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)  # a tied matrix has two
        return {"ema": {"weights": {name: self.weights[name_of[p]] for name, p in every}, "updates": self.updates}}
