"""What a logged step says of every block: learning rate, gradient norm, size of the update."""

import torch
from torch.nn.utils import get_total_norm

from blockwise.training.sharding import full_tensor


class BlockStats:
    """Made between the backward pass and the update; `row` after it."""

    def __init__(self, optimizer, model):
        """Takes a copy of the weights, to measure the update by."""
        self.rates = {group["block"]: group["lr"] for group in optimizer.param_groups}
        # In the model's order: Muon keeps a block's matrices and biases in two groups, and sums round by their order
        block_of = {p: group["block"] for group in optimizer.param_groups for p in group["params"]}
        self.blocks = {block: [] for block in self.rates}
        for p in model.parameters():
            if p in block_of:
                self.blocks[block_of[p]].append(p)
        self.before = {block: [p.detach().clone() for p in params] for block, params in self.blocks.items()}
        self.grad_norms = [total_norm([p.grad for p in params]) for params in self.blocks.values()]

    def row(self, updated):
        """lr/BLOCK, grad_norm/BLOCK and, where an update was made, update_rms/BLOCK: RMS of update over RMS of weights.

        All that is measured comes from the device at once.
        """
        keys, values = [f"grad_norm/{block}" for block in self.blocks], list(self.grad_norms)
        for block, params in self.blocks.items() if updated else ():
            old = self.before[block]
            change = total_norm([p.detach() - q for p, q in zip(params, old, strict=True)])
            keys.append(f"update_rms/{block}")
            values.append(change / total_norm(old))
        row = {f"lr/{block}": rate for block, rate in self.rates.items()}
        return row | dict(zip(keys, torch.stack(values).tolist(), strict=True))


def total_norm(tensors):
    """Norm of all of them as one vector, alike on all processes that share them."""
    return full_tensor(get_total_norm(tensors))
