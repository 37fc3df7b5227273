"""parallel=fsdp: weights, gradients and optimizer state divided over the processes (FSDP2, torch's fully_shard).

A sharded tensor is a DTensor, of which each process holds some rows. A checkpoint in one file holds whole tensors; in
either format it can be read by any number of processes. What gathers is called by all processes alike, or they wait for
one another.
"""

from dataclasses import replace

import torch

from blockwise.sharded_files import put_tensors, take_tensors


def is_sharded(config, world):
    return config.parallel == "fsdp" and world.size > 1


def shard_and_move(model, config, world):
    """Move a model to the device; with parallel=fsdp each process keeps a share of its parameters, alike on all.

    Transformer blocks are gathered one at a time, embeddings and the output layer together. With dtype=bfloat16 blocks
    are gathered in it, half the bytes, as autocast would round their matrices, and so are the gains of their norms:
    a group of their own would be a gap in every block's compiled graph. Shares, the last norm, sums of gradients and
    the optimizer's state are in float32.
    """
    if is_sharded(config, world):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # slow to load

        mesh = init_device_mesh(world.device.type, (world.size,))
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # autocast sees to activations
        low = replace(policy, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:  # each goes to the device as it is divided, so the whole never has to fit there
            fully_shard(block, mesh=mesh, mp_policy=low if config.dtype == "bfloat16" else policy)
        # Between two passes nothing may stay gathered, or an evaluation's weights would be used after they have changed
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model.to(world.device)


def full_tensor(tensor):
    """A tensor that is sharded, or that every process has a part of a sum of, in full."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(state, world, copy=False):
    """A checkpoint's nested dicts and lists with sharded tensors in full, on rank 0's CPU; elsewhere None for them.

    One tensor at a time, so that no device ever holds more than one in full. copy: all other tensors are copied to the
    CPU too, and training may change them from here on.
    """
    tensors, full = {}, {}
    tree = take_tensors(state, tensors)
    for name, tensor in tensors.items():
        full[name] = full_tensor(tensor)
        if full[name] is not tensor or copy:
            full[name] = copy_to_host(full[name]) if world.is_master else None
    if copy and world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return put_tensors(tree, full.get)


def copy_to_host(tensor):
    """From a GPU into pinned memory, which torch keeps for the next checkpoint; the copy may still be under way."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach(), non_blocking=True)
