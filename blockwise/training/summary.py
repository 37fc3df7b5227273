"""The first lines of a run: its parameter groups and its step; and --dry_run, which prints its memory too."""

import json
from dataclasses import asdict
from functools import partial

import torch

from blockwise import UserError, first_line, print0
from blockwise.blocks import param_groups
from blockwise.distributed import has_bfloat16
from blockwise.hardware import free_memory
from blockwise.optimizers import MATRIX_BLOCKS, state_bytes
from blockwise.settings import DRAWN
from blockwise.training.memory import StepMemory, measured_memory
from blockwise.training.sharding import is_sharded


def groups_of(config, model, lr_mult):
    """The parameters of a model by block type, as the optimizer is given them."""
    return param_groups(model, config.learning_rate, lr_mult, config.weight_decay, config.wd_mult)


def print_config(config):
    print0(json.dumps(asdict(config.resolved_without_data()), indent=1))


def print_summary(config, model, lr_mult, notes, world):
    """The first things that one wants from a log: block types, and what a step is. notes: further lines."""
    print_groups(config, groups_of(config, model, lr_mult))
    for note in filter(None, notes):
        print0(note)
    micro_steps = config.gradient_accumulation_steps // world.size
    print0(
        f"a step: {config.tokens_per_step:,} tokens = {world.size} processes x {micro_steps} micro-steps "
        f"x {config.batch_size} sequences x {config.block_size} tokens"
    )
    print0(f"on {config.device} in {config.dtype}, {'compiled' if config.compile else 'eager'}, into {config.out_dir}")
    if world.device.type == "cuda" and config.dtype == "float32" and not has_bfloat16():
        print0("this GPU has no bfloat16, so dtype=auto is float32; --dtype=float16 is available and faster")


def print_groups(config, groups):
    """The parameters by block type, and the optimizer's state."""
    print0(f"{'block':<6}{'tensors':>8}{'parameters':>14}{'peak lr':>10}{'decay':>7}{'beta2':>9}{'init std':>10}")
    for group in groups:
        block, tensors, numbers = group["block"], len(group["params"]), sum(p.numel() for p in group["params"])
        row = f"{block:<6}{tensors:>8}{numbers:>14,}{group['lr']:>10.1e}{group['weight_decay']:>7.3g}"
        without = config.optimizer == "sgd" or (config.optimizer == "muon" and block in MATRIX_BLOCKS)
        beta2 = "-" if without else f"{config.block_beta2.get(block, config.beta2):.5g}"
        std = f"{config.block_init_std.get(block, config.init_std):.3g}" if block in DRAWN else "-"
        print0(f"{row}{beta2:>9}{std:>10}")
    params = [p for group in groups for p in group["params"]]
    print0(f"{'all':<6}{len(params):>8}{sum(p.numel() for p in params):>14,}")
    print0(f"optimizer: {config.optimizer}, state {mb(state_bytes(config, groups))}")


def dry_run(config, make_model, model_config, data, lr_mult, notes, world, compile_may_fail, measure):
    """Everything short of training: what would run, how large it is, and whether the data is what it says it is.

    make_model: model_config, or another -> the model, on the default device. Rank 0 alone calls it.
    measure: whether to take a real step for its memory where there is no GPU, too.
    Raises UserError, after all else is printed, for data that is bad or not there.
    """
    print0(json.dumps(asdict(config), indent=1))
    with torch.device("meta"):
        groups = groups_of(config, make_model(model_config), lr_mult)
    print_groups(config, groups)
    print0(f"tokens per step: {config.tokens_per_step:,}")
    measure = measure or world.device.type == "cuda"
    try:
        memory = StepMemory(config, make_model, model_config, groups, world)
        print_memory(memory, partial(measured_memory, config, world, compile_may_fail) if measure else None)
    except Exception as error:  # nothing of the run depends on it
        print0(f"memory: not estimated ({first_line(error)})")
    for note in filter(None, notes):
        print0(note)
    data.verify()
    print0(f"data: {data.train.tokens:,} training and {data.val.tokens:,} validation tokens, all checked")


def print_memory(memory, measure):
    """The peak of a step, measured or estimated, what is free, and the largest batch size that this holds.

    memory: StepMemory of the run. measure: () -> bytes that a step takes in fact; None: an estimate is enough.
    """
    config, world = memory.config, memory.world
    sharded = is_sharded(config, world)
    if measure and sharded:
        print0("memory of a step is measured on one process, which parallel=fsdp has no use for: estimated instead")
    elif measure:
        try:
            print0(f"memory of a process, measured: {mb(measure())} ({'compiled' if config.compile else 'eager'})")
        except UserError as error:
            print0(f"memory of a step could not be measured: {error}")
    bound = ", which bounds a compiled step from above" if config.compile else ""
    bound += ", less what the compiler holds" if config.compile and world.device.type == "cpu" else ""
    unsharded = f"; unsharded: {mb(memory.unsharded(config.batch_size))}" if sharded else ""
    needed = mb(memory.of_run(config.batch_size))
    print0(f"memory of a process, estimated: {needed} ({'sharded, ' * sharded}eager{bound}{unsharded})")
    if free := free_memory(world.device):
        limit = 0.95 * free + memory.held  # gaps, workspaces of libraries and compiled kernels need the rest
        largest = memory.largest_batch(limit)
        more = " or more" if config.compile and largest else ""
        print0(f"free memory: {mb(free)}; estimated largest batch_size: {largest}{more}")


def mb(number):
    return f"{number / 1e6:,.0f} MB"
