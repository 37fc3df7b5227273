"""How a step's time and memory grow with the model, the batch and the processes, beside what is to be expected.

    python bench/scaling.py [--out=scaling.png] [--steps=8]   # a LLaMA on the CPU, one quantity at a time
    python bench/scaling.py --tiny                            # a test of this script; its numbers mean nothing

Each point is a run of train.py on made-up text: the median of its rows' step_ms, the last mem_mb, without the memory
of the smallest model. Exponents are slopes in log-log over the larger half of the values. Expected are those of the
operations that products and attention need (time), and of the tensors that a traced step holds (memory). More
processes, of one thread each, take more sequences at once: their time is to stay what it was while there are cores.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
from harness import fork_train, run_python, torchrun, wait, write_text

import train  # noqa: F401  (loaded once, for the forks)
from blockwise import UserError, exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.curves import read_rows
from blockwise.figures.style import start_figure, write
from blockwise.hardware import training_memory
from blockwise.keys import PATH, Keys, Range
from blockwise.optimizers import state_bytes
from blockwise.settings import TrainConfig
from configurator import configure
from model import ModelConfig, Transformer

BASE = {
    "n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 128, "batch_size": 4, "vocab_size": 1024,
    "model_type": "llama", "device": "cpu", "eval_interval": 0, "eval_iters": 1, "log_interval": 1,
    "learning_rate": 1e-4, "gradient_accumulation_steps": 1,
}  # fmt: skip
SMALLEST = {"n_layer": 1, "n_embd": 16, "block_size": 16, "batch_size": 1, "vocab_size": 256}
SWEEPS = {
    "n_layer": (2, 4, 8, 16), "n_embd": (64, 128, 256, 512), "block_size": (128, 256, 512, 1024),
    "batch_size": (4, 8, 16, 32), "vocab_size": (1024, 4096, 16384, 32768), "processes": (1, 2),
}  # fmt: skip


@dataclass
class ScalingConfig(Keys):
    """The keys of scaling.py."""

    flags = MappingProxyType({"tiny": "two runs, whose numbers mean nothing"})
    out: Annotated[str, "figure of the sweeps", PATH] = "scaling.png"
    steps: Annotated[int, "length of each run; the first three do not count", Range(4)] = 8


def rows_of(folder, steps, processes=None, **changes):
    """The rows of a run of train.py with these keys, those of its first three steps left out."""
    threads = 1 if processes else torch.get_num_threads()
    changes |= {"gradient_accumulation_steps": processes} if processes else {}
    words = [f"--{key}={value}" for key, value in {**BASE, **changes}.items()]
    words += [f"--data_dir={folder}", f"--out_dir={folder}/out", "--dataset=made_up", f"--max_iters={steps}"]
    log = Path(folder) / "log"
    if (processes or 1) > 1:
        run_python([*torchrun(processes), *words], threads)
    elif wait(fork_train(words, log, threads)):
        raise UserError(f"train.py {' '.join(words)}: {log.read_text().strip().splitlines()[-1:]}")
    return [row for row in read_rows(f"{folder}/out") if row["step"] >= 3 and "step_ms" in row]


def expected(changes):
    """(operations, bytes of tensors) of a step."""
    config = TrainConfig(**{**BASE, **changes}).resolved()
    shape = ModelConfig.of(config)
    with torch.device("meta"):
        model = Transformer(shape)
    sizes = (config.batch_size, config.block_size, 1)
    step = training_memory(lambda: Transformer(shape), *sizes, torch.device("cpu"), torch.float32)
    logging = 4 * sum(p.nbytes for p in model.parameters())  # weights, gradients, the weights before, the update
    tensors = max(step, logging) + state_bytes(config, param_groups(model, config.learning_rate))
    return model.flops_per_token() * config.batch_size * config.block_size, tensors


def exponents(values, results):
    """Slopes of both columns in log-log over the larger half."""
    half = len(values) // 2
    return np.polyfit(np.log(values[-half - 1 :]), np.log(results[-half - 1 :]), 1)[0]


def sweep(folder, key, values, steps, floor, panels):
    """Print and draw a sweep's milliseconds and its MB above the floor, their exponents, and those expected."""
    points = []
    for value in values:
        rows = rows_of(folder, steps, **{key: value})
        points.append((median(row["step_ms"] for row in rows), max(rows[-1]["mem_mb"] - floor, 0.1)))
    slopes, ideals = exponents(values, points), [0.0, 0.0]
    if key != "processes":
        ideals = exponents(values, [expected({key: value}) for value in values])
    each = " ".join(f"{value}: {ms:.0f} ms {mb:.0f} MB" for value, (ms, mb) in zip(values, points, strict=True))
    time, memory = (f"^{slope:.2f}, expected {ideal:.2f}" for slope, ideal in zip(slopes, ideals, strict=True))
    print(f"{key:<12}time {time}; memory {memory}   {each}", flush=True)
    for axes, measured, slope, ideal in zip(panels, zip(*points, strict=True), slopes, ideals, strict=True):
        axes.loglog(values, measured, "o-")
        axes.loglog(values, [measured[-1] * (value / values[-1]) ** ideal for value in values], "--", color="grey")
        axes.set_xticks(values, values)
        axes.minorticks_off()
        axes.set_title(f"{slope:.2f} (expected {ideal:.2f})", fontsize=9)
        axes.set_xlabel(key)


def main(argv):
    config, _, flags = configure(ScalingConfig, argv, __doc__)
    sweeps = {"batch_size": (1, 2)} if "tiny" in flags else SWEEPS
    figure, axes = start_figure(2 * len(sweeps), len(sweeps))
    axes[0].set_ylabel("ms a step")
    axes[len(sweeps)].set_ylabel("MB above the floor")
    with tempfile.TemporaryDirectory() as folder:
        write_text(folder)
        floor = rows_of(folder, config.steps, **SMALLEST)[-1]["mem_mb"]
        print(f"torch {torch.__version__}; a process without a model to speak of: {floor:.0f} MB")
        for column, (key, values) in enumerate(sweeps.items()):
            sweep(folder, key, values, config.steps, floor, axes[column :: len(sweeps)])
    write(figure, Path(config.out))


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
