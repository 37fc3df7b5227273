"""Curvature of the loss while a model trains: each block's sharpness, the largest preconditioned eigenvalue."""

from functools import partial

from blockwise.curvature.eigenvalues import largest_eigenvalue, power_iteration
from blockwise.curvature.hessian import Batch
from blockwise.curvature.tracker import CurvatureTracker
from blockwise.optimizers import preconditioner, stability_threshold
from blockwise.schedules import due


class LiveCurvature:
    """Measures where a step starts, on a fixed batch; a measurement changes nothing of the training."""

    def __init__(self, config, model, split, world, checkpoint):
        """split: of the training data, from which the batches come."""
        self.config = config
        self.split, self.world = split, world
        method = {"krylov": largest_eigenvalue, "power": power_iteration}[config.curvature_method]
        self.tracker = CurvatureTracker(
            model,
            self.batch(0),
            solve=partial(method, products=config.curvature_hvps, tolerance=0.0),
            threshold=stability_threshold(config.optimizer, config.beta1),
            exclude=config.curvature_exclude,
            seed=config.seed,
            micro=config.batch_size,
            all_reduce=world.all_reduce_sum,
        )
        if checkpoint and config.curvature_interval:
            self.tracker.eigenvector = checkpoint["eigenvector"]

    def batch(self, number):
        config = self.config
        return Batch.sample(self.split, config.seed, number, config.curvature_batch_size, config.block_size, self.world)

    def measure(self, step, optimizer):
        """The part of a row that is due in this step."""
        row = {}
        if due(step, self.config.sharpness_interval):
            row |= self.tracker.sharpness(step, optimizer.param_groups)
        if due(step, self.config.curvature_interval):
            row |= self.tracker.curvature(optimizer.param_groups, preconditioner(optimizer))
        return row

    def sharpness(self, number, optimizer):
        """{block: sharpness} on batch `number`, one draw of labels."""
        found = self.tracker.sharpness(0, optimizer.param_groups, self.batch(number))
        return {key.removeprefix("sharpness/"): value for key, value in found.items()}

    def state_dict(self):
        return {"eigenvector": self.tracker.eigenvector}
