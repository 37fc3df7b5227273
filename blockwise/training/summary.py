"""What a run says of itself before it starts: the groups, a step, memory; all there is to --dry_run."""

import json
from dataclasses import asdict, replace

import torch

from blockwise import first_line, print0
from blockwise.blocks import param_groups
from blockwise.hardware import free_memory, largest_batch
from blockwise.optimizers import MATRIX_BLOCKS, state_bytes
from blockwise.settings import DRAWN
from blockwise.training.memory import StepMemory
from blockwise.training.sharding import is_sharded


def groups_of(config, model, lr_mult):
    """The parameters of a model by block type, as the optimizer is given them."""
    return param_groups(model, config.learning_rate, lr_mult, config.weight_decay, config.wd_mult)


def print_config(config):
    print0(json.dumps(asdict(config.resolved_without_data()), indent=1))


def print_summary(config, model, lr_mult, notes, world):
    """The first things that one wants from a log: block types, and what a step is. notes: further lines."""
    groups = groups_of(config, model, lr_mult)
    print_groups(config, groups)
    for note in filter(None, notes):
        print0(note)
    print0(f"optimizer: {config.optimizer}, {state_sizes(config, groups)}")
    micro_steps = config.gradient_accumulation_steps // world.size
    print0(
        f"a step: {config.tokens_per_step:,} tokens = {world.size} processes x {micro_steps} micro-steps "
        f"x {config.batch_size} sequences x {config.block_size} tokens"
    )
    print0(f"on {config.device} in {config.dtype}, {'compiled' if config.compile else 'eager'}, into {config.out_dir}")


def print_groups(config, groups):
    print0(f"{'block':<6}{'tensors':>8}{'parameters':>14}{'peak lr':>10}{'decay':>7}{'beta2':>9}{'init std':>10}")
    for group in groups:
        block, tensors, numbers = group["block"], len(group["params"]), sum(p.numel() for p in group["params"])
        row = f"{block:<6}{tensors:>8}{numbers:>14,}{group['lr']:>10.1e}{group['weight_decay']:>7.3g}"
        without = config.optimizer == "sgd" or (config.optimizer == "muon" and block in MATRIX_BLOCKS)
        beta2 = "-" if without else f"{config.block_beta2.get(block, config.beta2):.5g}"
        std = f"{config.block_init_std.get(block, config.init_std):.3g}" if block in DRAWN else "-"
        print0(f"{row}{beta2:>9}{std:>10}")


def state_sizes(config, groups):
    """'state 950 MB (adamw: 1,898 MB)'"""
    state = f"state {mb(state_bytes(config, groups))}"
    if config.optimizer == "adamw":
        return state
    adamw = replace(config, optimizer="adamw", beta2=0.95)  # sgd has none; the size does not depend on it
    return f"{state} (adamw: {mb(state_bytes(adamw, groups))})"


def dry_run(config, make_model, model_config, data, lr_mult, notes, world):
    """Everything short of training: what would run, how large it is, and whether the data is what it says it is.

    make_model: model_config, or another -> the model, on the default device. Rank 0 alone calls it.
    Raises UserError, after all else is printed, for data that is bad or not there.
    """
    print0(json.dumps(asdict(config), indent=1))
    with torch.device("meta"):
        groups = groups_of(config, make_model(model_config), lr_mult)
    print_groups(config, groups)
    counts = [sum(p.numel() for p in group["params"]) for group in groups]
    print0(f"{'all':<6}{sum(len(group['params']) for group in groups):>8}{sum(counts):>14,}")
    print0(f"tokens per step: {config.tokens_per_step:,}")
    print0(f"optimizer: {config.optimizer}, {state_sizes(config, groups)}")
    try:
        print_memory(config, make_model, model_config, groups, world)
    except Exception as error:  # nothing of the run depends on it
        print0(f"memory: not estimated ({first_line(error)})")
    for note in filter(None, notes):
        print0(note)
    data.verify()
    print0(f"data: {data.train.tokens:,} training and {data.val.tokens:,} validation tokens, all checked")


def print_memory(config, make_model, model_config, groups, world):
    """The estimated peak of a step, eager and compiled, what is free, and the largest batch size that this holds.

    For a model that FSDP shards, or that does not fit, also the peak of a process by their number.
    """
    memory = StepMemory(config, make_model, model_config, groups, world)
    if config.compile:
        try:
            memory.moments  # noqa: B018
        except Exception as error:  # of the compiler's insides, which change from version to version
            print0(f"memory of a compiled step: not estimated ({first_line(error)})")
            memory.config = config = replace(config, compile=False)
    needed = memory.of_run(config.batch_size)
    ways = {"eager": memory.eager} | ({"compiled": memory.compiled} if config.compile else {})
    sharded = is_sharded(config, world)
    own = ("sharded, " if sharded else "") + list(ways)[-1]
    others = [f"{name}: {mb(way(config.batch_size))}" for name, way in ways.items() if sharded or name != own]
    beside = f"; {'unsharded and ' if sharded else ''}{', '.join(others)}" if others else ""
    print0(f"memory of a process, estimated: {mb(needed)} ({own}{beside})")
    free = free_memory(world.device)
    if free:
        limit = free + memory.held
        largest = largest_batch(memory.of_run, config.batch_size, limit)
        print0(f"free memory: {mb(free)}; estimated largest batch_size: {largest}")
        if world.device.type != "cpu" and (line := larger_micro_batch(config, world, largest)):
            print0(line)
    if config.parallel == "fsdp" or (free and needed > limit):
        print_shares(memory, world)


def print_shares(memory, world):
    """The memory of a process under parallel=fsdp, by the number of processes."""
    print0(f"parallel=fsdp, batch_size={memory.config.batch_size} on each process: estimated MB a process")
    print0(f"{'processes':>9}{'shares':>10}{'gathered':>10}{'activations':>13}{'in all':>10}")
    for processes in sorted({1, 8, 64, world.size}):
        if processes == 1:
            print0(f"{1:>9}{'':33}{memory.unsharded(memory.config.batch_size) / 1e6:>10,.0f}")
            continue
        parts = memory.sharded(processes, memory.config.batch_size)
        shares, gathered, activations = (part / 1e6 for part in parts)
        print0(f"{processes:>9}{shares:>10,.0f}{gathered:>10,.0f}{activations:>13,.0f}{sum(parts) / 1e6:>10,.0f}")


def larger_micro_batch(config, world, largest):
    """A line that says with which keys the same step has fewer and larger micro-steps that fit; "" without any.

    largest: the largest batch size by the estimate, of which a tenth is left for its errors.
    """
    micro_steps = config.gradient_accumulation_steps // world.size
    factors = [n for n in range(2, micro_steps + 1) if micro_steps % n == 0 and 1.1 * n * config.batch_size <= largest]
    if not factors:
        return ""
    keys = f"--batch_size={max(factors) * config.batch_size}"
    keys += f" --gradient_accumulation_steps={config.gradient_accumulation_steps // max(factors)}"
    return f"the same step in fewer, larger micro-steps: {keys} (evaluations have larger batches too)"


def mb(number):
    return f"{number / 1e6:,.0f} MB"
