"""Memory of a Hessian-vector product, estimated, and how many sequences at a time fit into it."""

import torch

from blockwise import UserError
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.hardware import nothing_allocated

SHARE = 0.9  # of a device's memory; the rest is its context, its libraries' workspaces, and gaps


def product_memory(make_model, sequences, block_size, device):
    """Estimate of the peak, in bytes, of a product of one micro-batch of `sequences`, beside the weights.

    make_model: builds the model on the default device.
    """
    with nothing_allocated(device) as live:
        model = make_model()
        tokens = torch.zeros(sequences, block_size, dtype=torch.int64)
        batch = Batch(tokens, tokens, list(range(sequences)), sequences * block_size)
        params = [p for p in model.parameters() if p.requires_grad]
        weights, live.peak = live.now, live.now
        HessianVectorProduct(model, batch, params).hvp([torch.zeros_like(p) for p in params])
    return live.peak - weights


def held_memory(make_model, vectors):
    """Bytes that are held meanwhile: the weights, and so many vectors of their length."""
    with torch.device("meta"):
        weights = sum(p.numel() * p.element_size() for p in make_model().parameters())
    return weights * (1 + vectors)


def fitting_micro_batch(asked, sequences, needed, limit):
    """How many of a process's `sequences` to take at a time: `asked`, or if that is None as many as fit.

    needed: number of sequences -> bytes, nearly in proportion; limit: bytes that there are. It depends on nothing but
    the shape and the device, so that a run that is resumed sums in the same order.
    Raises UserError where `asked`, or a single sequence, does not fit.
    """
    sequences = max(sequences, 1)
    first = needed(1)
    each = needed(2) - first
    fits = sequences if first + (sequences - 1) * each <= limit else 1 + int((limit - first) // each)
    if fits < 1 or (asked or 1) > fits:
        size = min(asked or 1, sequences)
        need = f"needs an estimated {(first + (size - 1) * each) / 1e9:,.1f} GB of {limit / 1e9:,.1f} GB"
        instead = f"expected at most {fits}" if fits >= 1 else "expected a smaller block_size, or no curvature"
        raise UserError(f"curvature_micro_batch={asked}: a product of {size} sequences {need}; {instead}")
    return asked or fits
