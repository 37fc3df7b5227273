"""Measure the curvature of checkpoints. Also under torchrun: the processes share each batch.

    python measure.py sharpness --out_dir=out/demo/blockwise                      # by block type, with error bars
    python measure.py sharpness --out_dir=out/demo/blockwise --checkpoints=all    # and how it evolved
    python measure.py sharpness --out_dir=out/demo/blockwise --estimator=hessian --batches=8

JSON and figures go into out_dir. Sharpness of a block: trace of its diagonal curvature over its number of parameters.
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from blockwise import UserError, exit_on_user_error
from configurator import configure


@dataclass
class MeasureConfig:
    """The keys of measure.py."""

    out_dir: Annotated[str, "folder of the run, and where the results go"] = "out"
    init_from: Annotated[str, "resume: checkpoints in out_dir; or a model in Hugging Face's format, hf:DIR_OR_ID"] = "resume"
    checkpoints: Annotated[Literal["newest", "all"], "all: every checkpoint that is kept (train with --keep_checkpoints=-1)"] = "newest"
    estimator: Annotated[Literal["fisher", "hessian", "empirical"], "fisher: Gauss-Newton-Bartlett; hessian: Hutchinson; empirical: Fisher of per-sequence gradients"] = "fisher"
    labels: Annotated[Literal["sampled", "data"], "of fisher: drawn from the model; data: the same formula on the data's, which is no Fisher"] = "sampled"
    split_tied: Annotated[bool, "measure the input and the output use of a tied embedding apart, as Emb and Head"] = False
    batches: Annotated[int, "independent batches; two at least for an error that holds for other data"] = 4
    draws: Annotated[int, "of labels, or of Hutchinson's signs, per batch"] = 4
    batch_size: Annotated[int, "windows of a batch, over all processes"] = 16
    micro_batch: Annotated[int | None, "windows at a time on one process (None: all of its own)"] = None
    dataset: Annotated[str | None, "data set (None: the run's)"] = None
    data_dir: Annotated[str | None, "where data sets lie (None: the run's)"] = None
    block_size: Annotated[int | None, "tokens of a window (None: the model's context)"] = None
    seed: Annotated[int, "of windows, labels and signs"] = 0
    device: Annotated[str, "cpu, cuda, cuda:1 (auto: cuda if there, else cpu)"] = "auto"

    def __post_init__(self):
        for key in ("batches", "draws", "batch_size", "micro_batch", "block_size"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)}: expected at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}: expected at least 0 and below 2**63")

    @property
    def kind(self):
        """What is measured, in a word: names files."""
        return "data_labels" if (self.estimator, self.labels) == ("fisher", "data") else self.estimator


COMMANDS = ("sharpness",)
if __name__ == "__main__":  # before torch is loaded, so that --help answers at once
    with exit_on_user_error():
        command, *words = [*sys.argv[1:], "--help"]
        if command not in (*COMMANDS, "--help", "-h"):
            raise UserError(f"unknown command {command!r}: expected {' or '.join(COMMANDS)}, then --key=value")
        config, _, _ = configure(MeasureConfig, sys.argv[2:] if command in COMMANDS else ["--help"], __doc__)

import copy
import json
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from blockwise.checkpoint import load_checkpoint, need_checkpoint, whole_checkpoints
from blockwise.curvature import (
    LOG10_BINS,
    Batch,
    Diagonal,
    HessianProducts,
    data_diagonal,
    empirical_fisher_diagonal,
    fisher_diagonal,
    hessian_diagonal,
    untied,
)
from blockwise.distributed import World, auto_device
from blockwise.huggingface import Pretrained, is_hugging_face
from blockwise.loader import Dataset, train_batch
from blockwise.logger import warn
from blockwise.rundir import write_file
from model import ModelConfig, Transformer

PROBE = 1 << 40  # steps from here on are no training's: their windows are the probes'


def main(config):
    device = auto_device(config.device)
    with World.start(device, "nccl" if device.startswith("cuda") else "gloo") as world:
        models, run = checkpoints_of(config) if config.init_from == "resume" else pretrained(config)
        keys = ("dataset", "data_dir", "block_size")
        config = replace(config, **{key: getattr(config, key) or run.get(key) for key in keys})
        if config.dataset is None:
            raise UserError("dataset is not given: expected the data set that the model shall be measured on")
        if config.block_size > run["block_size"]:
            context = f"the model's context, {run['block_size']}"
            raise UserError(f"block_size={config.block_size}: expected at most {context}")
        data = Dataset.open(config.data_dir or "data", config.dataset, config.block_size)
        sharpness(config, models, data.train, world)
    return 0


def checkpoints_of(config):
    """([(step, function that makes the model), ...], the run's config)"""
    newest = need_checkpoint(config.out_dir, warn)
    paths = [newest] if config.checkpoints == "newest" else whole_checkpoints(config.out_dir, warn)

    def make(path):
        saved = load_checkpoint(path)
        model = Transformer(ModelConfig(**saved["model_config"]))
        model.load_state_dict(saved["model"])
        return model

    steps = [(int(path.stem.removeprefix("ckpt_")), lambda path=path: make(path)) for path in paths]
    return steps, load_checkpoint(newest)["config"]


def pretrained(config):
    """The same for a model in Hugging Face's format, as step 0 of no run."""
    if not is_hugging_face(config.init_from):
        raise UserError(f"init_from={config.init_from}: expected resume or hf:DIR_OR_ID")
    source = Pretrained(config.init_from)

    def make():
        model = Transformer(ModelConfig(**source.shape, dropout=0.0))
        model.load_state_dict(source.weights(model.state_dict()))
        return model

    Path(config.out_dir).mkdir(parents=True, exist_ok=True)
    return [(0, make)], {"block_size": source.shape["block_size"]}


def probe(config, split, number, world):
    """Batch `number`: this process's windows of it."""
    windows = list(range(world.rank, config.batch_size, world.size))
    pairs = [train_batch(split, config.seed, PROBE + number, window, 1, config.block_size) for window in windows]
    x, y = (torch.cat(part).to(world.device) for part in zip(*pairs, strict=True))  # (N, T) each
    return Batch(x, y, windows, config.batch_size * config.block_size, number)


def sharpness(config, models, split, world):
    """Measure every model; rank 0 writes a JSON file for each, and draws."""
    repeats = 1 if config.kind in ("data_labels", "empirical") else config.draws  # nothing is drawn in these
    samples = len(models) * config.batches * repeats
    with tqdm(total=samples, unit="sample", disable=not world.is_master, mininterval=2) as progress:
        for step, make in models:
            model = make().to(world.device)
            model = untied(model, copy.deepcopy) if config.split_tied else model
            diagonal, started = Diagonal(model), time.perf_counter()
            for number in range(config.batches):
                batch = probe(config, split, number, world)
                drawn = []
                for draw, sample in enumerate(samples_of(config, model, batch, repeats, world)):
                    if not all(torch.isfinite(d).all() for d in sample):
                        raise UserError(f"step {step}, batch {number}, draw {draw}: the curvature is not finite")
                    drawn.append(sample)
                    progress.update()
                diagonal.add(drawn)
            if world.is_master:
                write_sharpness(config, step, diagonal, repeats, time.perf_counter() - started)
    if world.is_master:
        subprocess.run([sys.executable, str(Path(__file__).parent / "plot.py"), "sharpness", config.out_dir], check=True)


def samples_of(config, model, batch, repeats, world):
    """One sample of the diagonal for each draw."""
    params, micro = list(model.parameters()), config.micro_batch
    if config.kind == "data_labels":
        yield data_diagonal(model, batch, params, micro, world.total)
    elif config.kind == "empirical":
        yield empirical_fisher_diagonal(model, batch, params, world.total)
    elif config.kind == "fisher":
        for draw in range(repeats):
            yield fisher_diagonal(model, batch, params, config.seed, draw, micro, world.total)
    else:
        products = HessianProducts(model, batch, params, micro, world.total)
        for draw in range(repeats):
            yield hessian_diagonal(products, config.seed, batch.number, draw)


def write_sharpness(config, step, diagonal, draws, seconds):
    blocks = {block: asdict(one) for block, one in diagonal.by_block().items()}
    layers = [
        {"layer": layer, "block": block, "mean": one.mean, "error": one.error, "parameters": one.parameters}
        for (layer, block), one in diagonal.by_layer().items()
    ]
    found = {
        "step": step, "kind": config.kind, "batches": config.batches, "draws": draws,
        "positions": config.batch_size * config.block_size, "dataset": config.dataset, "seed": config.seed,
        "seconds": seconds, "blocks": blocks, "layers": layers, "log10_bins": LOG10_BINS.tolist(),
    }  # fmt: skip
    path = Path(config.out_dir) / f"sharpness_{config.kind}_{step:08d}.json"
    write_file(path, json.dumps(found, indent=1) + "\n")
    print(f"step {step}, {config.kind}: average sharpness by block")
    for block, one in sorted(blocks.items(), key=lambda item: item[1]["mean"]):
        error = "" if one["error"] is None else f" +- {one['error']:.1e}"
        geometric = "-" if one["geometric"] is None else f"{one['geometric']:.2e}"
        print(f"  {block:<5} {one['mean']:.3e}{error}   geometric mean {geometric}   {one['parameters']:,} parameters")


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(config))
