"""The memory estimate: what lives at the peak is counted, and what is freed is not."""

import json
import re
import signal
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Fork, finish, losses, metrics, out_dir, run, wait_for
from helpers import scripted
from torch import nn

from blockwise import hardware
from blockwise.blocks import param_groups
from blockwise.hardware import LiveBytes, training_memory
from blockwise.settings import TrainConfig
from blockwise.training import memory, summary
from blockwise.training.memory import StepMemory
from model import ModelConfig, Transformer


def test_live_bytes_counts_what_lives():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        assert live.now == 4000
        b = a.view(10, 100)[2:]  # the same storage
        c = a + 1
        assert (live.now, live.peak) == (8000, 8000)
        del c
        assert (live.now, live.peak) == (4000, 8000)
        del a
        assert live.now == 4000  # b holds it
        del b
        assert (live.now, live.peak) == (0, 8000)
    with LiveBytes(heap=2.0) as live:
        torch.zeros(1000)
        assert live.peak == 8000


class OneLayer(nn.Module):
    """Input (B, T) -> a loss; C is so wide that its tensors outweigh all else."""

    def __init__(self):
        super().__init__()
        self.up = nn.Embedding(4, 1 << 20)

    def forward(self, x, y):
        return self.up(x).exp().mean()


def test_the_peak_of_a_step_by_hand(monkeypatch):
    monkeypatch.setattr(hardware, "HEAP", 1.0)
    weights, activation = 4 * 4 << 20, 6 * 4 << 20
    peaks = [
        training_memory(OneLayer, 2, 3, micro_steps, torch.device("cpu"), torch.float32) for micro_steps in (1, 2, 3)
    ]
    # exp's output, the gradient of it, and that of its input; from the second micro-step on, a gradient of the weights
    assert peaks == pytest.approx([weights + 3 * activation, *[2 * weights + 3 * activation] * 2], abs=1000)


@pytest.fixture
def step_memory(monkeypatch):
    """StepMemory of a small model on so many processes, without what the process holds besides and without gaps."""
    monkeypatch.setattr(hardware, "HEAP", 1.0)
    monkeypatch.setattr(memory, "resident_memory", lambda device: 0)

    def of(size=1, **keys):
        config = TrainConfig(**{**SMALL_KEYS, **keys}).resolved()
        model_config = ModelConfig.of(config)
        world = SimpleNamespace(size=size, device=torch.device("cpu"))
        return StepMemory(config, Transformer, model_config, param_groups(Transformer(model_config), 1.0), world)

    return of


SMALL_KEYS = {
    "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 256, "dtype": "float32", "compile": False,
}  # fmt: skip


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_step_of_a_deep_model_follows_from_shallow_ones(step_memory, accumulated):
    """And one of a large batch from small ones: exactly, where there are no gaps between tensors."""
    memory = step_memory(n_layer=5, batch_size=4, gradient_accumulation_steps=accumulated)
    shape = 11, 32, accumulated, torch.device("cpu"), torch.float32
    whole = training_memory(partial(memory.make_model, 5), *shape)
    assert memory.of_run(11) == pytest.approx(whole + memory.state, rel=1e-3)


def test_the_largest_batch(step_memory, monkeypatch):
    memory = step_memory(n_layer=2, batch_size=2, gradient_accumulation_steps=1)
    fixed, update = memory.state + memory.weights, memory.state + 4 * memory.weights
    monkeypatch.setattr(memory, "activations", lambda batch_size: 1e6 * batch_size)
    assert memory.largest_batch(fixed + 7.5e6) == 7
    assert memory.largest_batch(update - 1) == 0  # the update takes as much at any batch size


def test_ddp_holds_gradients_in_buckets(step_memory):
    """Another copy of them from the first micro-step on, as with several micro-steps; and NCCL has its buffers."""
    keys = {"n_layer": 1, "batch_size": 1, "gradient_accumulation_steps": 2}
    two, nccl = (step_memory(2, backend=backend, **keys) for backend in ("gloo", "nccl"))
    assert (two.earlier, two.unsharded(1)) == (two.weights, step_memory(**keys).unsharded(1))
    assert two.held == 0 and nccl.held > 1e8


def test_a_measured_step(small):
    """In a process of its own. The estimate comes near what is measured."""
    words = (*small, "--n_embd=256", "--n_layer=3", "--block_size=256", "--batch_size=16", "--vocab_size=4096")
    words = (*words, "--max_iters=1", "--dropout=0", "--dry_run=measure")
    status, out, err = finish(Fork(*words))  # what this process holds would count in the estimate
    assert status == 0, err
    measured, estimated = (
        int(re.search(rf"{how}: ([\d,]+) MB \(eager\)", out)[1].replace(",", "")) for how in ("measured", "estimated")
    )
    assert measured > 500 and estimated == pytest.approx(measured, rel=0.2)
    assert not out_dir(small).exists()


def test_a_step_that_cannot_be_measured(small, tmp_path, capsys, monkeypatch):
    """One line says why, as the run itself would; the estimate is there all the same."""
    script = tmp_path / "train.py"
    script.write_text("import sys\nsys.exit('Traceback\\n\\nerror: out of memory on cuda:0: lower batch_size=2')")
    monkeypatch.setattr(memory, "TRAIN", script)
    assert run(*small, "--dry_run=measure") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "memory of a step could not be measured: out of memory on cuda:0: lower batch_size=2" in lines
    assert any("estimated" in line and "MB (eager)" in line for line in lines)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_dry_run_ends_at_once(small, data_dir, number, status):
    """And takes with it the process that measures, and its files."""
    process = Fork(*small, "--dry_run=measure")
    wait_for(process.texts[0], "optimizer: adamw", process)
    while not (
        jobs := [job for job in Path(tempfile.gettempdir()).glob("*/job.py") if str(data_dir) in job.read_text()]
    ):
        assert process.poll() is None
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(number)
    assert finish(process)[0] == status and time.monotonic() - began < 10
    assert not any(job.exists() for job in jobs)


def estimate(capsys, *words):
    run(*words, "--dry_run")
    out = capsys.readouterr().out
    return int(re.search(r"estimated: ([\d,]+) MB", out)[1].replace(",", "")), out


@pytest.mark.slow
def test_activation_checkpointing_changes_memory_and_nothing_else(small, tmp_path, capsys):
    wide = (*small, "--n_layer=6", "--n_embd=64", "--block_size=64", "--batch_size=64")
    usual, out = estimate(capsys, *wide)
    less, _ = estimate(capsys, *wide, "--activation_checkpointing=True")
    assert less < usual - 50
    assert re.search(r"free memory: [\d,]+ MB; estimated largest batch_size: \d+", out)
    words = (*small, "--activation_checkpointing=True", f"--out_dir={tmp_path / 'checkpointed'}")
    run(*small)
    run(*words)
    assert losses(words) == losses(small)  # dropout included
    same = ("grad_norm", "update_rms/QK")
    assert all(metrics(words)[step][key] == metrics(small)[step][key] for step in range(8) for key in same)


def test_a_dry_run_survives_its_estimate(small, capsys, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such pass\nin this version")

    monkeypatch.setattr(summary, "StepMemory", fail)
    assert run(*small, "--dry_run") == 0
    assert "memory: not estimated (no such pass" in capsys.readouterr().out


def test_the_estimate_bounds_a_compiled_step(small, capsys):
    _, out = estimate(capsys, *small, "--compile=True")
    assert "MB (eager, which bounds a compiled step from above, less what the compiler holds)" in out
    assert re.search(r"estimated largest batch_size: \d+ or more", out)


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA RTX A1000", None), ("NVIDIA RTX A4000", None), ("NVIDIA A40", 150), ("NVIDIA RTX A6000", 155),
        ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 NVL", 835), ("NVIDIA B300", 2250),
        ("NVIDIA GeForce RTX 5090", 210), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA A30", 165),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125), ("NVIDIA A10G", 70), ("Tesla V100-SXM2-16GB", 125), ("Tesla T4", 65),
        ("NVIDIA T400", None),
    ],
)  # fmt: skip
def test_peak_rates_by_exact_names(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    rate = hardware.peak_flops(torch.device("cuda"), torch.bfloat16)
    assert rate == (tera and tera * 1e12)


@pytest.mark.parametrize("dtype, emulated, said", [("float32", True, 1), ("float32", False, 0), ("float16", True, 0)])
def test_float16_where_there_is_no_bfloat16(capsys, monkeypatch, dtype, emulated, said):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or not emulated
    )
    config = TrainConfig(**{**SMALL_KEYS, "dtype": dtype}, n_layer=1, device="cuda").resolved()
    world = SimpleNamespace(size=1, device=torch.device("cuda"))
    summary.print_summary(config, Transformer(ModelConfig.of(config)), config.lr_mult, [], world)
    assert capsys.readouterr().out.count("--dtype=float16") == said


# FSDP

MEASURE_PEAK = """
import weakref
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
import blockwise.training.block_stats
class Held(TorchDispatchMode):
    known, peak = weakref.WeakSet(), 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for z in tree_leaves((args, kwargs, result)):
            z = getattr(z, "_local_tensor", z)  # of a DTensor
            if type(z) in (torch.Tensor, torch.nn.Parameter):
                self.known.add(z.untyped_storage())
        found["peak"] = max(found.get("peak", 0), sum(s.nbytes() for s in self.known))  # FSDP resizes storages
        return result
Held().__enter__()
"""


@pytest.mark.slow
def test_memory_of_a_share(small, step_memory, tmp_path):
    words = (*small, "--n_layer=6", "--n_embd=64", "--block_size=32", "--batch_size=4", "--max_iters=2", "--dropout=0")
    words = (*words, "--model_type=llama", "--parallel=fsdp", "--eval_interval=0", "--eval_iters=1")
    script, found = scripted(tmp_path, MEASURE_PEAK)
    status, _, err = finish(Fork(*words, processes=2, script=script))
    assert status == 0, err
    memory = step_memory(2, n_layer=6, n_embd=64, batch_size=4, model_type="llama", parallel="fsdp")
    assert memory.sharded(4) == pytest.approx(json.loads(found.read_text())["peak"], rel=0.15)
