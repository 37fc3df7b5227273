"""One model on many processes: torch.compile and DistributedDataParallel."""

import torch
from torch.nn.parallel import DistributedDataParallel

from blockwise import first_line, warn


def parallelize(model, config, world, first_pass, compile_may_fail):
    """(what evaluates, what trains): `model` compiled if the config says so, and that under DDP on several processes.

    first_pass: runs a forward and backward pass of a model, drops the gradients, and evaluates; it is tried here,
    before a step that counts. compile_may_fail: continue in eager mode where the compiler fails, with a warning.
    """
    fast = compiled(model, first_pass, compile_may_fail, world) if config.compile else model
    if world.size == 1:
        return fast, fast
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    parallel = DistributedDataParallel(fast, device_ids=device_ids, gradient_as_bucket_view=True)
    parallel.broadcast_buffers = False  # the rotary tables, constant
    first_pass(parallel)  # DDP settles the order of its sums after the first backward: not in a step that counts
    return fast, parallel


def compiled(model, first_pass, may_fail, world):
    """model under torch.compile, tried out on one pass of each kind; where that fails and may, the model as it is."""
    torch.compiler.reset()  # what it made for fewer layers; it gives up on a model that changes too often
    fast, failure = torch.compile(model), None
    try:
        first_pass(fast)
    except Exception as error:
        if not may_fail:
            raise
        failure = first_line(error)  # the error itself would keep this frame, and what its callers hold, alive
    if not world.any(failure):
        return fast
    if world.is_master:
        warn(f"torch.compile failed, continuing without it: {failure or 'on another rank'}")
    return model
