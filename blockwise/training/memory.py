"""The peak memory of a training step: of an eager one estimated before anything is built, of a real one measured."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path

import torch

from blockwise import UserError
from blockwise.hardware import at_depth, resident_memory, training_memory
from blockwise.optimizers import state_bytes
from blockwise.training.sharding import is_sharded

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
NCCL = 0.5e9  # bytes reserved for NCCL's buffers, which are none of torch's tensors; not measured
LARGEST = 1 << 20  # sequences; no batch beyond is looked for


class StepMemory:
    """Estimates of the peak of an eager training step, in bytes, of all that a process holds.

    make_model: ModelConfig -> the model, on the default device. groups: of `param_groups`, maybe on the meta device.
    """

    def __init__(self, config, make_model, model_config, groups, world):
        self.config, self.world = config, world
        self.make_model = lambda layers: make_model(replace(model_config, n_layer=layers))
        self.state = state_bytes(config, groups)
        self.held = resident_memory(world.device) + (NCCL if world.size > 1 and config.backend == "nccl" else 0)
        with torch.device("meta"):
            model = self.make_model(config.n_layer)
        self.weights = sum(p.nbytes for p in model.parameters())
        # Gradients that are there while others are made: of earlier micro-steps, or DDP's buckets
        several = config.gradient_accumulation_steps > world.size or world.size > 1
        self.earlier = self.weights if several else 0
        self.params = list(model.parameters())
        self.block = sum(p.nbytes for p in model.blocks[0].parameters())
        self.others = self.weights - config.n_layer * self.block
        self.tensors = cache(self.tensors)

    def of_run(self, batch_size):
        if is_sharded(self.config, self.world):
            return self.sharded(batch_size)
        return self.unsharded(batch_size)

    def unsharded(self, batch_size):
        update = 4 * self.weights  # besides the weights their gradients, a copy of them, and its difference
        return self.held + self.state + max(self.weights + self.earlier + self.activations(batch_size), update)

    def sharded(self, batch_size):
        """What a process holds under FSDP; see sharding.py.

        Its shares of weights, gradients and optimizer state, rows being divided. Besides, gathered: embeddings and
        output layer with their gradients all the time, and of the blocks the one that computes, the next one, the
        buffer in which it arrives, and the gradients of one before they are summed over the processes.
        """
        share = sum(p.nbytes / len(p) * math.ceil(len(p) / self.world.size) for p in self.params)
        shares = self.held + share * (2 + self.state / self.weights)
        low = 0.5 if self.config.dtype == "bfloat16" else 1.0
        activations = self.activations(batch_size)
        during = 2 * self.others + (4 * low + 1) * self.block  # while a block computes
        after = 3 * self.others  # the last gradients are copied to be summed when no activations are left
        return shares + max(during + activations, after, 2 * share)  # the last of these while the update is measured

    def activations(self, batch_size):
        """What a forward and backward pass keeps and makes, besides weights and gradients: as much for every sequence,
        so two sizes are enough."""
        size = self.config.batch_size
        first = self.tensors(size)
        each = (self.tensors(2 * size) - first) / size if batch_size != size else 0
        return max(first + (batch_size - size) * each, 0)

    def tensors(self, batch_size):
        """`activations`, by following such a pass of models of one and two layers."""
        block_size, dtype = self.config.block_size, getattr(torch, self.config.dtype)
        micro_steps = 2 if self.earlier or is_sharded(self.config, self.world) else 1

        def needed(layers):
            make_model = partial(self.make_model, layers)
            return training_memory(make_model, batch_size, block_size, micro_steps, self.world.device, dtype)

        return at_depth(needed, self.config.n_layer) - micro_steps * self.weights

    def largest_batch(self, limit):
        """The largest batch size whose step takes at most `limit` bytes; 0 if there is none."""
        return bisect_right(range(1, LARGEST), limit, key=self.of_run)


def measured_memory(config, world, compile_may_fail):
    """The peak in bytes of real steps of a run on one process, as it will train: compiled, its batch size, optimizer.

    train.py trains in a process of its own until its second step is logged; out_dir is not touched. On a CPU it is
    the peak of all that the process holds. Raises UserError with the reason, in one line, where the run ends before.
    """
    micro_steps = config.gradient_accumulation_steps // world.size
    with tempfile.TemporaryDirectory() as folder, ended_by_sigterm():
        config = replace(
            config, out_dir=f"{folder}/run",
            init_from="scratch", max_iters=max(config.max_iters, 3), eval_iters=1, eval_interval=0, log_interval=1,
            gradient_accumulation_steps=2 if micro_steps > 1 or world.size > 1 else 1, parallel="auto", backend="auto",
            curvature_batch_size=math.ceil(config.curvature_batch_size / world.size), arch_warmup=False,
            compile="auto" if config.compile and compile_may_fail else config.compile, wandb_log=False, profile=False,
            keep_checkpoints=2, eval_only=False, test_loss=False,
        )  # fmt: skip
        job, log, rows = (Path(folder, name) for name in ("job.py", "log.txt", "run/metrics.jsonl"))
        job.write_text("".join(f"{f.name} = {getattr(config, f.name)!r}\n" for f in fields(config)))
        torchruns = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in torchruns}
        environment["LAUNCHED_BY"] = str(os.getpid())  # it ends by itself when this process is killed
        with open(log, "w") as file:
            words = [sys.executable, str(TRAIN), str(job)]
            process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            while process.poll() is None:
                lines = rows.read_text().splitlines(keepends=True) if rows.exists() else []
                if len(lines) > 1 and lines[1].endswith("\n"):  # the first step makes the optimizer's state
                    return json.loads(lines[1])["mem_mb"] * 1e6
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        printed = log.read_text(errors="replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise UserError(printed[-1].removeprefix("error: "))


@contextmanager
def ended_by_sigterm():
    """Inside, SIGTERM raises SystemExit, so that temporary files go; before and after it ends the process at once."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
