"""Curvature of the loss while a model trains: each block's sharpness, the largest preconditioned eigenvalue."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from blockwise import UserError, print0
from blockwise.curvature.eigenvalues import largest_eigenvalue, power_iteration
from blockwise.curvature.hessian import Batch
from blockwise.curvature.memory import SHARE, fitting_micro_batch, held_memory, product_memory
from blockwise.curvature.tracker import CurvatureTracker
from blockwise.hardware import at_depth
from blockwise.optimizers import preconditioner, stability_threshold
from blockwise.schedules import due


class LiveCurvature:
    """Measures where a step starts, on a fixed batch; a measurement changes nothing of the training."""

    def __init__(self, config, model, split, world, checkpoint):
        """split: of the training data, from which the batches come."""
        self.config, self.split, self.world = config, split, world
        method = {"krylov": largest_eigenvalue, "power": power_iteration}[config.curvature_method]
        self.tracker = CurvatureTracker(
            model,
            self.batch(0),
            solve=partial(method, products=config.curvature_hvps, tolerance=0.0),
            threshold=stability_threshold(config.optimizer, config.beta1),
            exclude=config.curvature_exclude,
            seed=config.seed,
            micro=micro_batch(config, model, world),
            all_reduce=world.all_reduce_sum,
            precision=config.curvature_precision,
        )
        if checkpoint and config.curvature_interval:
            self.tracker.eigenvector = checkpoint["eigenvector"]

    def batch(self, number):
        config = self.config
        return Batch.sample(self.split, config.seed, number, config.curvature_batch_size, config.block_size, self.world)

    def measure(self, step, optimizer):
        """The part of a row that is due in this step. Raises UserError where the device's memory does not suffice."""
        row, groups = {}, optimizer.param_groups
        with self.out_of_memory_in_one_line():
            if due(step, self.config.sharpness_interval):
                row |= self.tracker.sharpness(step, groups)
            if due(step, self.config.curvature_interval):
                row |= self.tracker.curvature(groups, preconditioner(optimizer))
        return row

    def sharpness(self, number, optimizer):
        """{block: sharpness} on batch `number`, one draw of labels. Raises what `measure` raises."""
        with self.out_of_memory_in_one_line():
            row = self.tracker.sharpness(0, optimizer.param_groups, self.batch(number))
        return {key.removeprefix("sharpness/"): value for key, value in row.items()}

    @contextmanager
    def out_of_memory_in_one_line(self):
        try:
            yield
        except torch.OutOfMemoryError:
            size = self.tracker.options["micro"]
            problem = f"no memory to measure the curvature of {size} sequences at a time"
            raise UserError(f"{problem}; expected a curvature_micro_batch below {size}, or no curvature") from None

    def state_dict(self):
        return {"eigenvector": self.tracker.eigenvector}


def micro_batch(config, model, world):
    """How many sequences at a time are measured. Raises UserError where they do not fit into a CUDA device."""
    measures = config.sharpness_interval or config.curvature_interval or config.lr_mult == "auto"
    if world.device.type != "cuda" or not measures:
        return config.curvature_micro_batch or config.batch_size
    total = torch.cuda.get_device_properties(world.device).total_memory
    size = micro_batch_within(total, config, lambda n: type(model)(replace(model.config, n_layer=n)), world)
    print0(f"curvature: {size} sequences at a time")
    return size


def micro_batch_within(memory, config, make_model, world):
    """The same for a device with so many bytes in all: what is free differs from start to start, a sum must not.

    make_model: number of layers -> the model, on the default device.
    """
    vectors = 2 + (config.ema_decay > 0)  # the optimizer's moments, the average
    vectors += config.curvature_hvps + 6  # the Krylov space, its start, scale and products, the vector that is kept
    return fitting_micro_batch(
        config.curvature_micro_batch,
        math.ceil(config.curvature_batch_size / world.size),
        needed=lambda n: at_depth(
            lambda layers: product_memory(partial(make_model, layers), n, config.block_size, world.device),
            config.n_layer,
        ),
        limit=SHARE * memory - held_memory(partial(make_model, config.n_layer), vectors),
    )
