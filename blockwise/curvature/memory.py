"""Memory of a Hessian-vector product, estimated, and how many sequences at a time fit into it."""

import math
from dataclasses import replace
from functools import partial

import torch

from blockwise import UserError, print0
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.hardware import at_depth, nothing_allocated

SHARE = 0.9  # of a device's memory; the rest is its context, its libraries' workspaces, and gaps


def micro_batch(config, model, world):
    """How many sequences at a time are measured in a run: what the config says, or what fits into a CUDA device."""
    measures = config.sharpness_interval or config.curvature_interval or config.lr_mult == "auto"
    if world.device.type != "cuda" or config.curvature_micro_batch or not measures:
        return config.curvature_micro_batch or config.batch_size
    size = micro_batch_within(torch.cuda.get_device_properties(world.device).total_memory, config, model, world)
    print0(f"curvature: {size} sequences at a time")
    return size


def micro_batch_within(memory, config, model, world):
    """How many of a process's sequences fit at a time on a device with so many bytes in all, at most all of them.

    What is free differs from start to start; this depends on nothing but the shape and the device, so that a run that
    is resumed sums in the same order. Raises UserError where a single sequence does not fit.
    """
    vectors = 2 + (config.ema_decay > 0)  # the optimizer's moments, the average
    vectors += config.curvature_hvps + 6  # the Krylov space, its start, scale and products, the vector that is kept
    limit = SHARE * memory - (1 + vectors) * sum(p.numel() * p.element_size() for p in model.parameters())

    def needed(sequences, layers):
        make_model = partial(type(model), replace(model.config, n_layer=layers))
        return product_memory(make_model, sequences, config.block_size, world.device)

    first, second = (at_depth(partial(needed, sequences), config.n_layer) for sequences in (1, 2))
    fits = 1 + (limit - first) // (second - first)
    if fits < 1:
        need = f"needs an estimated {first / 1e9:,.1f} GB of {limit / 1e9:,.1f} GB"
        raise UserError(f"curvature: a product of one sequence {need}; expected a smaller block_size, or no curvature")
    return min(int(fits), math.ceil(config.curvature_batch_size / world.size))


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
