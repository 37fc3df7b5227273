"""Average sharpness of every block, by block type and by layer: sharpness_KIND_STEP.json."""

import time
from dataclasses import asdict

import torch
from tqdm import tqdm

from blockwise import UserError
from blockwise.curvature.diagonals import (
    LOG10_BINS,
    Diagonal,
    data_diagonal,
    empirical_fisher_diagonal,
    fisher_diagonal,
    hessian_diagonal,
    untied,
)
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.lr_multipliers import as_arguments, multipliers
from blockwise.measuring import progress_bar, write_json


def measure(config, models, split, world, suggest):
    """Measure every model; rank 0 writes a JSON file for each. suggest: print the multipliers that follow."""
    repeats = 1 if config.kind in ("data_labels", "empirical") else config.draws  # these two are deterministic
    samples = len(models) * config.batches * repeats
    with progress_bar(world, total=samples, unit="sample") as progress:
        for step, load in models:
            model = load()[0].to(world.device)
            model = untied(model) if config.split_tied else model
            diagonal, started = Diagonal(model), time.perf_counter()
            for number in range(config.batches):
                batch = Batch.sample(split, config.seed, number, config.batch_size, config.block_size, world)
                drawn = []
                for draw, sample in enumerate(diagonal_samples(config, model, batch, repeats, world)):
                    if not all(torch.isfinite(d).all() for d in sample):
                        raise UserError(f"step {step}, batch {number}, draw {draw}: the curvature is not finite")
                    drawn.append(sample)
                    progress.update()
                diagonal.add(drawn)
            if world.is_master:
                write_sharpness(config, step, diagonal, repeats, time.perf_counter() - started, suggest)


def diagonal_samples(config, model, batch, repeats, world):
    """One sample of the diagonal per draw, by the estimator of `config`: a list of tensors like the parameters."""
    params, micro = [p for p in model.parameters() if p.requires_grad], config.micro_batch
    if config.kind == "data_labels":
        yield data_diagonal(model, batch, params, micro, world.all_reduce_sum)
    elif config.kind == "empirical":
        yield empirical_fisher_diagonal(model, batch, params, world.all_reduce_sum)
    elif config.kind == "fisher":
        for draw in range(repeats):
            yield fisher_diagonal(model, batch, params, config.seed, draw, micro, world.all_reduce_sum)
    else:
        hessian = HessianVectorProduct(model, batch, params, micro, world.all_reduce_sum)
        for draw in range(repeats):
            yield hessian_diagonal(hessian, config.seed, batch.number, draw)


def write_sharpness(config, step, diagonal, draws, seconds, suggest):
    blocks = {block: asdict(stats) for block, stats in diagonal.by_block().items()}
    layers = [
        {"layer": layer, "block": block, "mean": stats.mean, "error": stats.error, "parameters": stats.parameters}
        for (layer, block), stats in diagonal.by_layer().items()
    ]
    measured = {
        "step": step, "kind": config.kind, "batches": config.batches, "draws": draws,
        "positions": config.batch_size * config.block_size, "dataset": config.dataset, "seed": config.seed,
        "seconds": seconds, "blocks": blocks, "layers": layers, "log10_bins": LOG10_BINS.tolist(),
    }  # fmt: skip
    if suggest:
        averages = {block: stats["mean"] for block, stats in blocks.items()}
        suggested = multipliers(averages, config.auto_mult_power, config.auto_mult_max, step)
        measured["suggested"] = {"power": config.auto_mult_power, "max": config.auto_mult_max, "lr_mult": suggested}
    write_json(config, f"sharpness_{config.kind}", measured)
    tqdm.write(f"step {step}, {config.kind}: average sharpness by block")
    for block, stats in sorted(blocks.items(), key=lambda item: item[1]["mean"]):
        error = "" if stats["error"] is None else f" +- {stats['error']:.1e}"
        geometric = "-" if stats["geometric"] is None else f"{stats['geometric']:.2e}"
        means = f"{stats['mean']:.3e}{error}   geometric mean {geometric}"
        tqdm.write(f"  {block:<5} {means}   {stats['parameters']:,} parameters")
    if suggest:
        tqdm.write(as_arguments(suggested))
