"""The largest eigenvalue of the Hessian, plain and preconditioned as the optimizer sees it: curvature_STEP.json."""

from types import SimpleNamespace

import torch

from blockwise.blocks import param_groups
from blockwise.checkpoint import load_optimizer
from blockwise.curvature.eigenvalues import largest_eigenvalue
from blockwise.curvature.hessian import Batch, Preconditioned, norm_rate, scaling
from blockwise.lr_multipliers import multipliers_at
from blockwise.measuring import progress_bar
from blockwise.optimizers import optimizer_for, preconditioner, stability_threshold
from blockwise.schedules import block_rate


class Curvature:
    def __init__(self, config, data, run, world):
        self.config, self.world = config, world
        sequences = config.batches * config.batch_size
        where = data.train, config.seed, 0, sequences, config.block_size
        self.batch = Batch.sample(*where, world, config.micro_batch)

    def measure(self, step, model, checkpoint):
        """Without and with the preconditioner of the checkpoint's optimizer, if that has one in its state."""
        identity = {p: torch.ones_like(p) for p in model.parameters() if p.requires_grad}
        found = {"positions": self.batch.positions, "tolerance": self.config.tolerance}
        found["hessian"] = self.largest_eigenvalue_of(model, identity)
        run = SimpleNamespace(**checkpoint["config"])
        if run.optimizer in ("adamw", "adam_mini", "sgd"):
            optimizer = saved_optimizer(checkpoint, model)
            groups = optimizer.param_groups
            scales = scaling(groups, preconditioner(optimizer), self.config.exclude)
            if any(scale.any() for scale in scales.values()):
                value = self.largest_eigenvalue_of(model, scales)
                found["preconditioned"] = value | {
                    "lr_lambda": norm_rate(groups) * value["lambda_max"],
                    "lr": {group["block"]: group["lr"] for group in groups},
                    "threshold": stability_threshold(run.optimizer, run.beta1),
                    "exclude": self.config.exclude,
                }
        return found

    def largest_eigenvalue_of(self, model, scales):
        """The largest eigenvalue of D H D, as it is written; scales: the entries of D, {parameter: tensor}."""
        config = self.config
        matrix = Preconditioned(model, self.batch, scales)
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
        else:
            yield "  no preconditioned one: it takes the second moments of Adam, or sgd, and a rate above 0"


def saved_optimizer(saved, model):
    """A checkpoint's optimizer over the parameters of its model, at the learning rates of its step."""
    run, step = SimpleNamespace(**saved["config"]), saved["step"]
    groups = param_groups(model, run.learning_rate, multipliers_at(run, step, saved.get("auto_mult")))
    optimizer = optimizer_for(run, groups)
    load_optimizer(optimizer, saved["optimizer"])
    for group in optimizer.param_groups:
        group["lr"] = block_rate(run, step, group["lr_mult"])
    return optimizer
