"""The largest eigenvalue of the Hessian, plain and preconditioned as the optimizer sees it: curvature_STEP.json."""

import time
from types import SimpleNamespace

import torch
from tqdm import tqdm

from blockwise import UserError
from blockwise.blocks import param_groups
from blockwise.checkpoint import load_optimizer
from blockwise.curvature.eigenvalues import largest_eigenvalue
from blockwise.curvature.hessian import Batch, HessianVectorProduct, Preconditioned, scaling
from blockwise.lr_multipliers import multipliers_at
from blockwise.measuring import counted, progress_bar, write_json
from blockwise.optimizers import optimizer_for, preconditioner, stability_threshold
from blockwise.schedules import block_rate


def measure(config, models, split, world):
    """Measure every model, with and without its optimizer's preconditioner; rank 0 writes a JSON file for each."""
    batch = Batch.sample(split, config.seed, 0, config.batches * config.batch_size, config.block_size, world)
    plain_only = config.init_from != "resume" or config.preconditioner == "none"
    products = len(models) * config.products * (1 if plain_only else 2)
    with progress_bar(world, total=products, unit="product") as progress:
        for step, load in models:
            model, saved = load()
            model, started = model.to(world.device), time.perf_counter()
            scales, optimizer = ({}, {}) if plain_only else preconditioner_scales(config, saved, model)
            identity = {p: torch.ones_like(p) for p in model.parameters() if p.requires_grad}
            eigenvalues = {"hessian": largest_eigenvalue_of(config, step, model, identity, batch, world, progress)}
            if scales:
                value = largest_eigenvalue_of(config, step, model, scales, batch, world, progress)
                rate = {"lr_lambda": optimizer["lr"]["Norm"] * value["lambda_max"]}
                eigenvalues["preconditioned"] = value | rate | optimizer | {"exclude": config.exclude}
            elif not plain_only:
                progress.total -= config.products
            if world.is_master:
                write_curvature(config, step, eigenvalues, time.perf_counter() - started)


def preconditioner_scales(config, saved, model):
    """(R^(1/2) P^(-1/2) of a checkpoint's optimizer, {"lr": of each block, "threshold": of stability}).

    The first as {parameter: tensor}; both are empty if the optimizer has no state yet, or the learning rate is 0.
    Raises UserError for an optimizer without the preconditioner of `config`, or if no block is left to measure.
    """
    run, step = SimpleNamespace(**saved["config"]), saved["step"]
    adam = run.optimizer in ("adamw", "adam_mini")
    if not adam and (run.optimizer != "sgd" or config.preconditioner == "adam"):
        instead = "auto (none, as sgd steps) or none" if run.optimizer == "sgd" else "none, for the Hessian alone"
        problem = f"the checkpoint of step {step} is of {run.optimizer}, which has no second moments like Adam's"
        raise UserError(f"preconditioner={config.preconditioner}: {problem}; expected {instead}")
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


def largest_eigenvalue_of(config, step, model, scales, batch, world, progress):
    """The largest eigenvalue of D H D and its residual, as written; scales: the entries of D, {parameter: tensor}."""
    hessian = HessianVectorProduct(model, batch, scales, config.micro_batch, world.all_reduce_sum)
    matrix = Preconditioned(hessian, scales.values())
    try:
        start = matrix.random(config.seed)
        top = largest_eigenvalue(counted(matrix, progress), start, config.products, config.tolerance)
    except FloatingPointError:
        raise UserError(f"step {step}: the curvature is not finite") from None
    progress.total -= config.products - top.products
    return {
        "lambda_max": top.value, "residual": top.residual, "products": top.products, "converged": top.converged,
    }  # fmt: skip


def write_curvature(config, step, eigenvalues, seconds):
    about = {
        "step": step, "dataset": config.dataset, "positions": config.batches * config.batch_size * config.block_size,
        "seed": config.seed, "tolerance": config.tolerance, "seconds": seconds,
    }  # fmt: skip
    write_json(config, "curvature", about | eigenvalues)
    tqdm.write(f"step {step}: largest eigenvalue")
    for kind, value in eigenvalues.items():
        note = "" if value["converged"] else f", NOT CONVERGED after {value['products']} products"
        tqdm.write(f"  {kind:<15}{value['lambda_max']:.4e}   residual {value['residual']:.1e}{note}")
    if "preconditioned" in eigenvalues:
        value = eigenvalues["preconditioned"]
        tqdm.write(f"  {'times the rate':<15}{value['lr_lambda']:.4g}, and {value['threshold']:.4g} is the threshold")
    elif config.init_from == "resume" and config.preconditioner != "none":
        tqdm.write("  no preconditioned one: the optimizer has no state yet, or the learning rate is 0")
