"""The largest eigenvalue of the Hessian, plain and preconditioned as the optimizer sees it: curvature_STEP.json."""

from types import SimpleNamespace

import torch

from blockwise import UserError
from blockwise.blocks import param_groups
from blockwise.checkpoint import load_optimizer
from blockwise.curvature.eigenvalues import largest_eigenvalue
from blockwise.curvature.hessian import Batch, HessianVectorProduct, Preconditioned, scaling
from blockwise.lr_multipliers import multipliers_at
from blockwise.measuring import progress_bar
from blockwise.optimizers import optimizer_for, preconditioner, stability_threshold
from blockwise.schedules import block_rate


class Curvature:
    def __init__(self, config, data, run, world):
        self.config, self.world = config, world
        self.plain_only = config.preconditioner == "none"
        sequences = config.batches * config.batch_size
        self.batch = Batch.sample(data.train, config.seed, 0, sequences, config.block_size, world)

    def measure(self, step, model, checkpoint):
        """With and without the preconditioner of the checkpoint's optimizer."""
        scales, optimizer = ({}, {}) if self.plain_only else preconditioner_scales(self.config, checkpoint, model)
        identity = {p: torch.ones_like(p) for p in model.parameters() if p.requires_grad}
        found = {"positions": self.batch.positions, "tolerance": self.config.tolerance}
        found["hessian"] = self.largest_eigenvalue_of(model, identity)
        if scales:
            value = self.largest_eigenvalue_of(model, scales)
            rate = {"lr_lambda": optimizer["lr"]["Norm"] * value["lambda_max"]}
            found["preconditioned"] = value | rate | optimizer | {"exclude": self.config.exclude}
        return found

    def largest_eigenvalue_of(self, model, scales):
        """The largest eigenvalue of D H D, as it is written; scales: the entries of D, {parameter: tensor}."""
        config = self.config
        hessian = HessianVectorProduct(model, self.batch, scales, config.micro_batch, self.world.all_reduce_sum)
        matrix = Preconditioned(hessian, scales.values())
        with progress_bar(self.world, total=config.products, unit="product") as progress:

            def product(v):
                progress.update()
                return matrix(v)

            top = largest_eigenvalue(product, matrix.random(config.seed), config.products, config.tolerance)
        return {
            "lambda_max": top.value, "residual": top.residual, "products": top.products, "converged": top.converged,
        }  # fmt: skip

    def report(self, found):
        yield "largest eigenvalue"
        for kind in ("hessian", "preconditioned"):
            if kind in found:
                value = found[kind]
                note = "" if value["converged"] else f", NOT CONVERGED after {value['products']} products"
                yield f"  {kind:<15}{value['lambda_max']:.4e}   residual {value['residual']:.1e}{note}"
        if "preconditioned" in found:
            threshold = f"{found['preconditioned']['threshold']:.4g} is the threshold"
            yield f"  {'times the rate':<15}{found['preconditioned']['lr_lambda']:.4g}, and {threshold}"
        elif not self.plain_only:
            yield "  no preconditioned one: the optimizer has no state yet, or the learning rate is 0"


def preconditioner_scales(config, saved, model):
    """(R^(1/2) P^(-1/2) of a checkpoint's optimizer, {"lr": of each block, "threshold": of stability}).

    The first as {parameter: tensor}; both are empty if the optimizer has no state yet, or the learning rate is 0.
    Raises UserError for an optimizer without a diagonal preconditioner, or if no block is left to measure.
    """
    run = SimpleNamespace(**saved["config"])
    if run.optimizer not in ("adamw", "adam_mini", "sgd"):
        problem = f"the checkpoint is of {run.optimizer}, which has no second moments like Adam's"
        raise UserError(f"preconditioner=auto: {problem}; expected none, for the Hessian alone")
    optimizer = saved_optimizer(saved, model)
    if {group["block"] for group in optimizer.param_groups} <= set(config.exclude):
        raise UserError(f"exclude={','.join(config.exclude)}: expected to leave a block of the model")
    scales = scaling(optimizer.param_groups, preconditioner(optimizer), config.exclude)
    if not any(scale.any() for scale in scales.values()):
        return {}, {}
    rates = {group["block"]: group["lr"] for group in optimizer.param_groups}
    return scales, {"lr": rates, "threshold": stability_threshold(run.optimizer, run.beta1)}


def saved_optimizer(saved, model):
    """A checkpoint's optimizer over the parameters of its model, at the learning rates of its step."""
    run, step = SimpleNamespace(**saved["config"]), saved["step"]
    groups = param_groups(model, run.learning_rate, multipliers_at(run, step, saved.get("auto_mult")))
    optimizer = optimizer_for(run, groups)
    load_optimizer(optimizer, saved["optimizer"])
    for group in optimizer.param_groups:
        group["lr"] = block_rate(run, step, group["lr_mult"])
    return optimizer
