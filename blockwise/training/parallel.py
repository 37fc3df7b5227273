"""One model on many processes: torch.compile and DistributedDataParallel; what FSDP shards is sharded already."""

import copy
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from blockwise import UserError, warn
from blockwise.training.machine import is_out_of_memory, out_of_memory_message, root_cause
from blockwise.training.sharding import is_sharded


def parallelize(run, compile_may_fail):
    """Set run.eval_model, raw_model compiled if the config says so, and run.model, that under DDP on several processes.

    A forward and backward pass, and an evaluation, are tried here, before a step that counts. compile_may_fail:
    continue in eager mode where the compiler fails, with a warning.
    Raises UserError on every process if the memory of one does not hold that pass.
    """
    model, config, world = run.raw_model, run.config, run.world
    run.model = run.eval_model = None  # frees an old DDP wrapper and its hooks
    fast, parallel = model, None
    sharded = is_sharded(config, world)
    if config.compile:
        # Compiled inside of DDP's forward pass, whose buckets then split the graph: they are sent while backward runs
        if sharded:
            fast = compile_blocks(model)
        else:
            fast = compiled_by_block(model) if config.arch_warmup else torch.compile(model)
        parallel = distributed(fast, config, world)
        if failure := trial(run, parallel, compile_may_fail):
            if world.is_master:
                warn(f"torch.compile failed, continuing without it: {failure}")
            for module in (model, *model.blocks) if sharded else ():
                module.__dict__.pop("forward" if module is not model else "loss")
            fast, parallel = model, None  # DDP's hooks go with it
            model.train().zero_grad(set_to_none=True)
    if parallel is None:
        parallel = distributed(model, config, world)
        if world.device.type == "cuda":
            trial(run, parallel, may_fail=False)
    if world.size > 1:
        first_pass(run, parallel)  # DDP settles the order of its sums in the first backward: not in a step that counts
    run.eval_model, run.model = fast, parallel


def first_pass(run, model):
    """Forward, backward and evaluation of `model`, which leave nothing behind."""
    run.loss(model, run.progress.step, 0).backward()
    run.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():  # an evaluation has a graph of its own
        run.loss(model.eval(), run.progress.step, 0)
    model.train()


def distributed(model, config, world):
    """model under DDP, if there are several processes and it is not sharded."""
    if world.size == 1 or is_sharded(config, world):
        return model
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    parallel = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
    parallel.broadcast_buffers = False  # the rotary tables, constant
    return parallel


def compiled_by_block(model):
    """model with each transformer block and the loss compiled on their own; parameters and modules are shared.

    All blocks have one graph, so more of them cost no compilation: for an architecture warm-up. `model` itself stays
    as it is, which a second derivative needs.
    """
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.blocks = nn.ModuleList(torch.compile(block) for block in model.blocks)
    twin.loss = torch.compile(model.loss)
    return twin


def compile_blocks(model):
    """Compile the blocks and the loss of a sharded model in place: FSDP's hooks gather around the compiled code."""
    for block in model.blocks:
        block.forward = torch.compile(block.forward)
    model.loss = torch.compile(model.loss)
    return model


def trial(run, model, may_fail):
    """Why a first pass without communication failed, in one line; "" where it succeeded on every process.

    No process waits for one that fails, but under FSDP, which communicates in every pass.
    Raises UserError where memory is short, and any other error unless may_fail.
    """
    failure, reason, short = None, "", False
    try:
        with model.no_sync() if hasattr(model, "no_sync") else nullcontext():
            first_pass(run, model)
    except Exception as error:
        reason, short = root_cause(error), is_out_of_memory(error)
        if not may_fail:  # else the error would keep alive what the frames hold that it came through
            failure = error
    failed, out_of_memory = run.world.sum(float(bool(reason)), float(short))
    if out_of_memory:
        failure = None
        raise UserError(out_of_memory_message(run.config, run.world.device))
    if failed and not may_fail:
        raise failure or RuntimeError("the first pass failed on another rank")
    return reason or ("it failed on another rank" if failed else "")
