"""What a process needs of its device's memory, estimated before anything is built: eager, compiled, sharded."""

import math
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain

import torch

from blockwise.hardware import resident_memory, training_memory
from blockwise.optimizers import state_bytes
from blockwise.training.compiled_memory import compiled_memory, compiled_moments
from blockwise.training.sharding import is_sharded


class StepMemory:
    """Estimates of the peak of a training step, in bytes, all that a process holds included.

    make_model: ModelConfig -> the model, on the default device. groups: the model's parameters as the optimizer has
    them, which may be on the meta device.
    """

    def __init__(self, config, make_model, model_config, groups, world):
        self.config, self.world, self.dtype = config, world, getattr(torch, config.dtype)
        self.make_model = lambda layers: make_model(replace(model_config, n_layer=layers))
        self.micro_steps = config.gradient_accumulation_steps // world.size
        self.state = state_bytes(config, groups)
        self.traces = {}  # {(batch size, micro-steps): bytes}
        self.held = resident_memory(world.device)
        with torch.device("meta"):
            model = self.make_model(config.n_layer)
        self.weights = sum(p.nbytes for p in model.parameters())
        self.earlier = self.weights if self.micro_steps > 1 else 0  # gradients of the micro-steps before
        self.blocks = [list(block.parameters()) for block in model.blocks]
        inside = {p for block in self.blocks for p in block}
        self.others = [p for p in model.parameters() if p not in inside]

    def of_run(self, batch_size):
        """As the run will be. Raises what the compiler does where that is compiled and cannot be traced."""
        if is_sharded(self.config, self.world):
            return sum(self.sharded(self.world.size, batch_size))
        return self.unsharded(batch_size)

    def unsharded(self, batch_size):
        return self.compiled(batch_size) if self.config.compile else self.eager(batch_size)

    def eager(self, batch_size):
        return self.held + self.state + max(self.traced(batch_size, self.micro_steps), 4 * self.weights)

    def compiled(self, batch_size):
        step = self.weights + self.earlier + compiled_memory(self.moments, batch_size / self.config.batch_size)
        return self.held + self.state + max(step, 4 * self.weights)

    def sharded(self, processes, batch_size):
        """(shares, gathered, activations) of a process under FSDP; see `place` in sharding.py.

        Shares are those of weights, gradients and optimizer state, rows being divided. Gathered are embeddings and
        output layer with their gradients all the time, and of the blocks the one that computes, the next one, the
        buffer in which it arrives, and the gradients of one before they are summed over the processes.
        """
        params = chain(self.others, *self.blocks)
        share = sum(p.nbytes / len(p) * math.ceil(len(p) / processes) for p in params)
        shares = self.held + share * (2 + self.state / self.weights)
        low = 0.5 if self.config.dtype == "bfloat16" else 1.0
        block = sum(p.nbytes for p in self.blocks[0])
        others = sum(p.nbytes for p in self.others)
        activations = self.activations(batch_size)
        during = 2 * others + (4 * low + 1) * block  # while a block computes
        after = 3 * others  # the last gradients are copied to be summed when no activations are left
        gathered = max(during, after - activations, 2 * share - activations)  # or while the update is measured
        return shares, gathered, activations

    def activations(self, batch_size):
        """What a forward and backward pass keeps and makes, beside weights and their gradients."""
        if self.config.compile:
            ratio = batch_size / self.config.batch_size
            return ratio * max(moment.scaled for moment in self.moments)
        return max(self.traced(batch_size, micro_steps=2) - 2 * self.weights, 0)

    def traced(self, batch_size, micro_steps):
        if (batch_size, micro_steps) not in self.traces:
            make_model = partial(self.make_model, self.config.n_layer)
            known = self.config.block_size, micro_steps, self.world.device, self.dtype
            self.traces[batch_size, micro_steps] = training_memory(make_model, batch_size, *known)[0]
        return self.traces[batch_size, micro_steps]

    @cached_property
    def moments(self):
        config = self.config
        known = config.n_layer, config.batch_size, config.block_size, self.world.device, self.dtype
        return compiled_moments(self.make_model, *known)
