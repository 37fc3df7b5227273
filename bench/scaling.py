"""How a step's time and memory grow with the model, the batch and the processes, beside what is to be expected.

    python bench/scaling.py [--out=scaling.png] [--steps=8]   # a LLaMA on the CPU, one quantity at a time
    python bench/scaling.py --long_run=2000                   # does a long run with everything on stay as large?
    python bench/scaling.py --two_processes=7                 # 2 processes of 1 thread against 1 process of 2 threads
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
from harness import fork_train, run_python, times_as_fast, torchrun, wait, write_text

import train  # noqa: F401  (loaded once, for the forks)
from blockwise import UserError, exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.curves import read_rows
from blockwise.figures.style import write
from blockwise.hardware import training_memory
from blockwise.keys import PATH, Keys, Range
from blockwise.optimizers import state_bytes
from blockwise.settings import TrainConfig
from configurator import configure
from model import ModelConfig, Transformer

BASE = {"n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 128, "batch_size": 4, "vocab_size": 1024}
SMALLEST = {"n_layer": 1, "n_embd": 16, "block_size": 16, "batch_size": 1, "vocab_size": 256}
SWEEPS = {
    "n_layer": (2, 4, 8, 16), "n_embd": (64, 128, 256, 512), "block_size": (128, 256, 512, 1024),
    "batch_size": (4, 8, 16, 32), "vocab_size": (1024, 4096, 16384, 32768),
    "processes": (1, 2),
}  # fmt: skip
TINY_SWEEPS = {"batch_size": (1, 2)}


@dataclass
class ScalingConfig(Keys):
    """The keys of scaling.py."""

    flags = MappingProxyType({"tiny": "two runs, whose numbers mean nothing"})

    out: Annotated[str, "figure of the sweeps", PATH] = "scaling.png"
    steps: Annotated[int, "length of each run; the first three do not count", Range(4)] = 8
    long_run: Annotated[
        int | None, "steps of the long run, above 200, which takes the place of the sweeps", Range(201)
    ] = None
    two_processes: Annotated[int | None, "rounds of two processes against one, in place of the sweeps", Range(1)] = None


def keys_of(**changes):
    return {
        **BASE, "model_type": "llama", "device": "cpu", "eval_interval": 0, "eval_iters": 1, "log_interval": 1,
        "learning_rate": 1e-4, "gradient_accumulation_steps": 1, **changes,
    }  # fmt: skip


def rows_of(folder, steps, processes=1, threads=None, **changes):
    """The rows of a run of train.py with these keys, those of its first three steps left out."""
    words = [f"--{key}={value}" for key, value in keys_of(**changes).items()]
    words += [f"--data_dir={folder}", f"--out_dir={folder}/out", "--dataset=made_up", f"--max_iters={steps}"]
    log = Path(folder) / "log"
    if processes > 1:
        run_python([*torchrun(processes), *words], threads)
    elif wait(fork_train(words, log, threads or torch.get_num_threads())):
        raise UserError(f"train.py {' '.join(words)}: {log.read_text().strip().splitlines()[-1:]}")
    return [row for row in read_rows(f"{folder}/out") if row["step"] >= 3 and "step_ms" in row]


def expected(**changes):
    """(operations, bytes of tensors) of a step."""
    config = TrainConfig(**keys_of(**changes)).resolved()
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


def sweep(folder, key, values, steps, floor):
    """Print and return a sweep's points (value, ms, MB beside the floor), their exponents, and those expected."""
    points, ideals = [], [0.0, 0.0]
    for value in values:
        if key == "processes":  # one micro-step and one thread each
            rows = rows_of(folder, steps, value, 1, gradient_accumulation_steps=value)
        else:
            rows = rows_of(folder, steps, **{key: value})
        points.append((value, median(row["step_ms"] for row in rows), max(rows[-1]["mem_mb"] - floor, 0.1)))
    slopes = exponents(values, [point[1:] for point in points])
    if key != "processes":
        ideals = exponents(values, [expected(**{key: value}) for value in values])
    print(
        f"{key:<12}time ^{slopes[0]:.2f}, expected {ideals[0]:.2f}; "
        f"memory ^{slopes[1]:.2f}, expected {ideals[1]:.2f}   "
        + " ".join(f"{value}: {ms:.0f} ms {mb:.0f} MB" for value, ms, mb in points),
        flush=True,
    )
    return points, slopes, ideals


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(results), figsize=(3 * len(results), 6), sharex="col", squeeze=False, layout="tight"
    )
    for column, (key, (points, slopes, ideals)) in zip(axes.T, results.items(), strict=True):
        for row, (ax, unit) in enumerate(zip(column, ("ms a step", "MB beside the floor"), strict=True)):
            values, measured = [point[0] for point in points], [point[row + 1] for point in points]
            ax.loglog(values, measured, "o-")
            ax.loglog(values, [measured[-1] * (v / values[-1]) ** ideals[row] for v in values], "--", color="grey")
            ax.set_xticks(values, values)
            ax.minorticks_off()
            ax.set_title(f"{slopes[row]:.2f} (expected {ideals[row]:.2f})", fontsize=9)
            ax.set_ylabel(unit)
        column[1].set_xlabel(key)
    write(figure, Path(path))


def long_run(folder, steps):
    """Peak memory at step 200 and at the end, with evaluation, checkpoints and curvature on. Returns the status."""
    rows = rows_of(
        folder, steps, sharpness_interval=100, curvature_interval=100, eval_interval=50, eval_iters=4,
        log_interval=50, n_embd=64, gradient_accumulation_steps=2,
    )  # fmt: skip
    early = next(row for row in rows if row["step"] >= 200)
    growth = rows[-1]["mem_mb"] / early["mem_mb"] - 1
    print(f"step {early['step']}: {early['mem_mb']:.0f} MB; step {rows[-1]['step']}: {rows[-1]['mem_mb']:.0f} MB")
    print(f"grown by {100 * growth:.1f} %: {'flat' if growth <= 0.02 else 'NOT flat'} (2 % allowed)")
    return int(growth > 0.02)


def two_processes(folder, steps, rounds):
    """Tokens a second of two processes with a thread each, over those of one process with two threads, in turns."""
    keys = dict(n_layer=4, n_head=4, vocab_size=4096, block_size=256, gradient_accumulation_steps=2)
    turns = [
        [median(row["step_ms"] for row in rows_of(folder, steps, n, 2 // n, **keys)) for n in (1, 2)]
        for _ in range(rounds)
    ]
    one, two = zip(*turns, strict=True)
    print(f"two processes of one thread over one of two, {rounds} rounds: {times_as_fast(two, one)}")
    return 0


def main(argv):
    config, _, flags = configure(ScalingConfig, argv, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        write_text(folder)
        if config.long_run:
            return long_run(folder, config.long_run)
        if config.two_processes:
            return two_processes(folder, config.steps, config.two_processes)
        floor = rows_of(folder, config.steps, **SMALLEST)[-1]["mem_mb"]
        print(f"torch {torch.__version__}; a process without a model to speak of: {floor:.0f} MB")
        sweeps = TINY_SWEEPS if "tiny" in flags else SWEEPS
        draw({key: sweep(folder, key, values, config.steps, floor) for key, values in sweeps.items()}, config.out)
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
