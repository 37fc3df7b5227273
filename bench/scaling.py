"""How a step's time and memory grow with the model, the batch and the processes, beside what is to be expected.

    python bench/scaling.py [--out=scaling.png] [--steps=8]   # a LLaMA on the CPU, one quantity at a time
    python bench/scaling.py --long_run=2000                   # does a long run with everything on stay as large?
    python bench/scaling.py --two_processes=7                 # 2 processes of 1 thread against 1 process of 2 threads

Each point is a run of train.py on random tokens: the median of its rows' step_ms, the last mem_mb, without the memory
of the smallest model. Exponents are slopes in log-log over the larger half of the values. Expected are those of the
operations that products and attention need (time), and of the tensors that a traced step holds (memory). More
processes, of one thread each, take more sequences at once: their time is to stay what it was while there are cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from blockwise import UserError, exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.data.writing import write_dataset
from blockwise.hardware import training_memory
from blockwise.optimizers import state_bytes
from blockwise.settings import TrainConfig
from blockwise.tokenizer import BYTES
from configurator import ArgumentParser
from model import ModelConfig, Transformer

BASE = {"n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 128, "batch_size": 4, "vocab_size": 1024}
SWEEPS = {
    "n_layer": (2, 4, 8, 16), "n_embd": (64, 128, 256, 512), "block_size": (128, 256, 512, 1024),
    "batch_size": (4, 8, 16, 32), "vocab_size": (1024, 4096, 16384, 32768),
    "processes": (1, 2),
}  # fmt: skip


def train(folder, steps, processes=1, threads=None, **keys):
    """The rows of a run of train.py with these keys, those of its first three steps left out."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
    words = [f"--{key}={value}" for key, value in keys.items()]
    words += [f"--data_dir={folder}", f"--out_dir={folder}/out", "--dataset=random", f"--max_iters={steps}"]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "train.py", *words]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise UserError(f"train.py {' '.join(words)}: {run.stderr.strip().splitlines()[-1:]}")
    rows = map(json.loads, (Path(folder) / "out" / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["step"] >= 3 and "step_ms" in row]


def keys_of(**changes):
    return {
        **BASE, "model_type": "llama", "device": "cpu", "eval_interval": 0, "eval_iters": 1, "log_interval": 1,
        "learning_rate": 1e-4, "gradient_accumulation_steps": 1, **changes,
    }  # fmt: skip


def expected(**changes):
    """(operations, bytes of tensors) of a step."""
    config = TrainConfig(**keys_of(**changes)).resolved()
    model_config = ModelConfig(**{key: asdict(config)[key] for key in ModelConfig.__dataclass_fields__})
    with torch.device("meta"):
        model = Transformer(model_config)
    tensors = max(
        training_memory(
            lambda: Transformer(model_config), config.batch_size, config.block_size, 1, torch.device("cpu"),
            torch.float32,
        )
    )  # fmt: skip
    groups = param_groups(model, config.learning_rate)
    tensors += state_bytes(config, groups)
    return model.flops_per_token() * config.batch_size * config.block_size, tensors


def exponent(values, results):
    half = len(values) // 2
    return np.polyfit(np.log(values[-half - 1 :]), np.log(results[-half - 1 :]), 1)[0]


def sweep(folder, key, values, steps, floor):
    """Print and return a sweep's points (value, ms, MB beside the floor), their exponents, and those expected."""
    points = []
    for value in values:
        if key == "processes":  # one micro-step and one thread each
            rows = train(folder, steps, value, 1, **keys_of(gradient_accumulation_steps=value))
        else:
            rows = train(folder, steps, **keys_of(**{key: value}))
        points.append((value, median(row["step_ms"] for row in rows), rows[-1]["mem_mb"] - floor))
    slopes = [exponent(values, [point[i] for point in points]) for i in (1, 2)]
    ideals = [0.0, 0.0]
    if key != "processes":
        theory = [expected(**{key: value}) for value in values]
        ideals = [exponent(values, [pair[i] for pair in theory]) for i in (0, 1)]
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

    figure, axes = plt.subplots(2, len(results), figsize=(3 * len(results), 6), sharex="col")
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
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def long_run(folder, steps):
    """Peak memory at step 200 and at the end, with evaluation, checkpoints and curvature on. Returns the growth."""
    rows = train(
        folder, steps, sharpness_interval=100, curvature_interval=100,
        **keys_of(eval_interval=50, eval_iters=4, log_interval=50, n_embd=64, gradient_accumulation_steps=2),
    )  # fmt: skip
    early = next(row for row in rows if row["step"] >= 200)
    growth = rows[-1]["mem_mb"] / early["mem_mb"] - 1
    print(f"step {early['step']}: {early['mem_mb']:.0f} MB; step {rows[-1]['step']}: {rows[-1]['mem_mb']:.0f} MB")
    print(f"grown by {100 * growth:.1f} %: {'flat' if growth <= 0.02 else 'NOT flat'} (2 % allowed)")
    return growth


def two_processes(folder, steps, rounds):
    """Tokens a second of two processes with a thread each, over those of one process with two threads, in turns."""
    keys = keys_of(n_layer=4, n_head=4, vocab_size=4096, block_size=256, gradient_accumulation_steps=2)
    ratios = []
    for _ in range(rounds):
        ms = [median(row["step_ms"] for row in train(folder, steps, n, 2 // n, **keys)) for n in (1, 2)]
        ratios.append(ms[0] / ms[1])
    ratios.sort()
    print(f"two processes of one thread are {median(ratios):.2f}x as fast as one of two ", end="")
    print(f"({ratios[0]:.2f} to {ratios[-1]:.2f}, {rounds} rounds)")


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="scaling.png")
    parser.add_argument("--steps", type=int, default=8, help="of each run; the first three do not count")
    parser.add_argument("--long_run", type=int, help="steps of the long run, above 200")
    parser.add_argument("--two_processes", type=int, metavar="ROUNDS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ids = np.random.default_rng(0).integers(256, size=200_000).tolist()
        write_dataset(Path(folder) / "random", {"train": ids, "val": ids[:20_000]}, BYTES, "random bytes")
        if args.long_run:
            sys.exit(long_run(folder, args.long_run) > 0.02)
        if args.two_processes:
            return two_processes(folder, args.steps, args.two_processes)
        tiny = {"n_layer": 1, "n_embd": 16, "block_size": 16, "batch_size": 1, "vocab_size": 256}
        floor = train(folder, args.steps, **keys_of(**tiny))[-1]["mem_mb"]
        print(f"torch {torch.__version__}; a process without a model to speak of: {floor:.0f} MB")
        results = {key: sweep(folder, key, values, args.steps, floor) for key, values in SWEEPS.items()}
        draw(results, args.out)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
