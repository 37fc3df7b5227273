"""What a run says of itself before it starts: the groups, a step, memory; all there is to --dry_run."""

import json
from dataclasses import asdict

import torch

from blockwise import print0
from blockwise.blocks import param_groups
from blockwise.hardware import free_memory, largest_batch, resident_memory, training_memory
from blockwise.optimizers import MATRIX_BLOCKS, state_bytes
from blockwise.settings import DRAWN


def groups_of(config, model, lr_mult):
    """The parameters of a model by block type, as the optimizer is given them."""
    return param_groups(model, config.learning_rate, lr_mult, config.weight_decay, config.wd_mult)


def print_summary(config, model, lr_mult, plans, world):
    """The first things that one wants from a log: block types, and what a step is. plans: further lines."""
    groups = groups_of(config, model, lr_mult)
    print_groups(config, groups)
    for plan in filter(None, plans):
        print0(plan)
    print0(f"optimizer: {config.optimizer}, {state_sizes(config, groups)}")
    micro_steps = config.gradient_accumulation_steps // world.size
    print0(
        f"a step: {tokens_per_step(config):,} tokens = {world.size} processes x {micro_steps} micro-steps "
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


def tokens_per_step(config):
    return config.gradient_accumulation_steps * config.batch_size * config.block_size


def state_sizes(config, groups):
    """'state 950 MB (adamw: 1,898 MB)'"""
    betas, head_width = (config.beta1, config.beta2), config.n_embd // config.n_head
    sizes = {name: state_bytes(name, groups, betas, head_width) for name in {config.optimizer, "adamw"}}
    beside = f" (adamw: {sizes['adamw'] / 1e6:,.0f} MB)" if config.optimizer != "adamw" else ""
    return f"state {sizes[config.optimizer] / 1e6:,.0f} MB{beside}"


def dry_run(config, make_model, data, lr_mult, plans, world):
    """Everything short of training: what would run, how large it is, and whether the data is what it says it is.

    make_model: builds the model on the default device. Rank 0 alone calls it. Raises UserError for bad data.
    """
    print0(json.dumps(asdict(config), indent=1))
    with torch.device("meta"):
        groups = groups_of(config, make_model(), lr_mult)
    print_groups(config, groups)
    counts = [sum(p.numel() for p in group["params"]) for group in groups]
    print0(f"{'all':<6}{sum(len(group['params']) for group in groups):>8}{sum(counts):>14,}")
    print0(f"tokens per step: {tokens_per_step(config):,}")
    print0(f"optimizer: {config.optimizer}, {state_sizes(config, groups)}")
    print_memory(config, make_model, groups, world)
    data.verify()
    print0(f"data: {data.train.tokens:,} training and {data.val.tokens:,} validation tokens, all checked")
    for plan in filter(None, plans):
        print0(plan)


def print_memory(config, make_model, groups, world):
    """The estimated peak of a step, and the batch size whose estimate is what is free now."""
    state = state_bytes(config.optimizer, groups, (config.beta1, config.beta2), config.n_embd // config.n_head)
    held, free = resident_memory(world.device), free_memory(world.device)
    micro_steps, dtype = config.gradient_accumulation_steps // world.size, getattr(torch, config.dtype)

    def needed(batch_size):
        tensors = training_memory(make_model, batch_size, config.block_size, micro_steps, world.device, dtype)
        return held + state + max(tensors)

    note = "; compiled it takes less, which is not estimated" if config.compile else ""
    print0(f"memory of a process, estimated: {needed(config.batch_size) / 1e6:,.0f} MB (eager{note})")
    if free:
        largest = largest_batch(needed, config.batch_size, free + held)
        print0(f"free memory: {free / 1e6:,.0f} MB; estimated largest batch_size: {largest}")
