"""Curvature of the loss while a model trains: each block's sharpness, the largest preconditioned eigenvalue."""

import math
import time
from functools import partial

import torch

from blockwise.curvature.diagonals import fisher_sharpness
from blockwise.curvature.eigenvalues import largest_eigenvalue, power_iteration
from blockwise.curvature.hessian import Batch, Preconditioned, norm_rate, scaling
from blockwise.curvature.memory import micro_batch
from blockwise.optimizers import preconditioner, stability_threshold
from blockwise.schedules import due


class LiveCurvature:
    """Measures where a step starts, on a fixed batch; a measurement changes nothing of the training.

    Of the largest eigenvalue of R^(1/2) P^(-1/2) H P^(-1/2) R^(1/2) it makes few products a time and carries the
    eigenvector v on, as the direction x = R^(1/2) P^(-1/2) v of the parameters: P^(1/2) R^(-1/2) x under the next P
    and R is the transport of arXiv 2606.16768, and needs no old P.

    eigenvector: {name of a parameter: its part of x}, None before the first time: what an exact resume needs.
    """

    def __init__(self, config, model, split, world, checkpoint):
        """split: of the training data, from which the batches come."""
        self.config, self.model, self.split, self.world = config, model, split, world
        self.names = {p: name for name, p in model.named_parameters()}
        self.eigenvector = checkpoint["eigenvector"] if checkpoint and config.curvature_interval else None
        self.micro = micro_batch(config, model, world)
        self.batch = self.probe(0)
        method = {"krylov": largest_eigenvalue, "power": power_iteration}[config.curvature_method]
        self.solve = partial(method, products=config.curvature_hvps, tolerance=0.0)

    def probe(self, number):
        config = self.config
        where = self.split, config.seed, number, config.curvature_batch_size, config.block_size
        return Batch.sample(*where, self.world, self.micro, config.curvature_precision)

    def measure(self, step, optimizer):
        """The part of a row that is due in this step."""
        row = {}
        if due(step, self.config.sharpness_interval):
            averages = self.fisher(self.batch, step, optimizer)
            row |= {f"sharpness/{block}": value for block, value in averages.items()}
        if due(step, self.config.curvature_interval):
            row |= self.curvature(optimizer.param_groups, preconditioner(optimizer))
        return row

    def sharpness(self, number, optimizer):
        """{block: average sharpness} on batch `number`, one draw of labels."""
        return self.fisher(self.probe(number), 0, optimizer)

    def fisher(self, batch, draw, optimizer):
        blocks = {}
        for group in optimizer.param_groups:
            blocks.setdefault(group["block"], []).extend(group["params"])
        return fisher_sharpness(self.model, blocks, batch, self.config.seed, draw)

    def curvature(self, groups, preconditioner):
        """curvature/lambda_max and what belongs to it; nothing where no coordinate takes part, as before any state.

        A product that is not finite makes the eigenvalue NaN, and the next start a new one.
        """
        config, started = self.config, time.perf_counter()
        scales = scaling(groups, preconditioner, config.curvature_exclude)
        if not any(scale.any() for scale in scales.values()):
            return {}
        matrix = Preconditioned(self.model, self.batch, scales)
        start = matrix.to_preconditioned(self.warm_start(scales))
        try:
            top = self.solve(matrix, start if start.any() else matrix.random(config.seed))
            value, residual = top.value, top.residual
        except FloatingPointError:
            value = residual = math.nan
        self.eigenvector = None
        if math.isfinite(value):
            pieces = (matrix.scale * top.vector).split([p.numel() for p in scales])
            pairs = zip(scales, pieces, strict=True)
            self.eigenvector = {self.names[p]: piece.view_as(p).clone() for p, piece in pairs}
        return {
            "curvature/lambda_max": value,
            "curvature/lr_lambda": norm_rate(groups) * value,
            "curvature/threshold": stability_threshold(config.optimizer, config.beta1),
            "curvature/residual": residual,
            "curvature/ms": 1000 * (time.perf_counter() - started),
        }

    def warm_start(self, params):
        """The vector over these parameters, (n,); 0 for those that it has no part of."""
        vector = self.eigenvector or {}
        parts = [vector.get(self.names[p], torch.zeros_like(p)).to(p) for p in params]
        return torch.cat([part.flatten() for part in parts])

    def state_dict(self):
        return {"eigenvector": self.eigenvector}
