"""parallel=fsdp: weights, gradients and optimizer state divided over the processes (FSDP2, torch's fully_shard).

A sharded tensor is a DTensor, of which each process holds some rows. A checkpoint in one file holds whole tensors; in
either format it can be read by any number of processes. What gathers is called by all processes alike, or they wait for
one another.
"""

from dataclasses import replace

import torch
from torch import nn

from blockwise.optimizers import MuonWithAdamW


def is_sharded(config, world):
    return config.parallel == "fsdp" and world.size > 1


def place(model, config, world):
    """Move a model to the device; with parallel=fsdp each process keeps a share of its parameters, alike on all.

    Transformer blocks are gathered one at a time, embeddings and the output layer together. With dtype=bfloat16 the
    matrices of the blocks are gathered in it, half the bytes, as autocast would round them; shares, norms, sums of
    gradients and the optimizer's state are in float32.
    """
    if is_sharded(config, world):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # slow to load

        mesh = init_device_mesh(world.device.type, (world.size,))
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # autocast sees to activations
        low = replace(policy, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:  # each goes to the device as it is divided, so the whole never has to fit there
            if config.dtype == "bfloat16":
                norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
                fully_shard(norms, mesh=mesh, mp_policy=policy)
            fully_shard(block, mesh=mesh, mp_policy=low if config.dtype == "bfloat16" else policy)
        # Between two passes nothing may stay gathered, or an evaluation's weights would be used after they have changed
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model.to(world.device)


def whole(tensor):
    """A tensor that is sharded, or that every process has a part of a sum of, in full."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(tree, world, known=None):
    """A checkpoint's nested dicts and lists with sharded tensors whole on rank 0, on the CPU; None for them elsewhere.

    A tied matrix, which has two names, is gathered once.
    """
    known = {} if known is None else known
    if hasattr(tree, "full_tensor"):
        local = tree.to_local()
        key = local.untyped_storage().data_ptr(), local.storage_offset(), tree.shape
        if not key[0] or key not in known:
            full = tree.full_tensor()
            known[key] = full.cpu() if world.is_master else None
        return known[key]
    if isinstance(tree, dict):
        return {name: gathered(value, world, known) for name, value in tree.items()}
    return [gathered(value, world, known) for value in tree] if isinstance(tree, list) else tree


def shard_like(value, p):
    """A whole tensor divided as the parameter p is; anything of another shape, and all else, as it is.

    Of a tensor on the disk a process reads only what it keeps.
    """
    if hasattr(value, "read_into"):
        sharded = hasattr(p, "to_local") and value.shape == p.shape
        return value.read_into(torch.empty_like(p.detach(), dtype=value.dtype)) if sharded else value.read()
    if not hasattr(p, "to_local") or not isinstance(value, torch.Tensor) or value.shape != p.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)


def sharded_state(optimizer, state):
    """The state dict of an optimizer, in full, divided as its parameters are."""
    if isinstance(optimizer, MuonWithAdamW):
        return {part: sharded_state(getattr(optimizer, part), state[part]) for part in ("muon", "adamw")}
    params = (p for group in optimizer.param_groups for p in group["params"])
    numbers = (number for group in state["param_groups"] for number in group["params"])
    owner = dict(zip(numbers, params, strict=True))
    divided = {
        number: {name: shard_like(value, owner[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": divided}
