"""The memory estimate: what lives at the peak is counted, and what is freed is not."""

import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import Fork, finish, losses, metrics, run
from test_curvature import make
from test_parallel import scripted
from torch import nn

import model
from blockwise import hardware, matmul
from blockwise.blocks import param_groups
from blockwise.hardware import LiveBytes, largest_batch, training_memory
from blockwise.settings import TrainConfig
from blockwise.training import compiled_memory, summary
from blockwise.training.memory import StepMemory
from blockwise.training.summary import larger_micro_batch
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
        training_memory(OneLayer, 2, 3, micro_steps, torch.device("cpu"), torch.float32)[0] for micro_steps in (1, 2, 3)
    ]
    # exp's output, the gradient of it, and that of its input; from the second micro-step on, a gradient of the weights
    assert peaks == pytest.approx([weights + 3 * activation, *[2 * weights + 3 * activation] * 2], abs=1000)


def test_the_largest_batch():
    """Of memory that bends, as where tensors outgrow the heap, and of a limit that nothing fits."""
    calls = []

    def needed(size):
        calls.append(size)
        return 1000 + (13 * size if size < 50 else 650 + 10 * (size - 50))

    for start in (30, 50, 100):
        calls.clear()
        found = largest_batch(needed, start, 3000)
        assert needed(found) <= 3000 < needed(found + 2) and len(calls) < 10
    calls.clear()
    assert largest_batch(needed, 10, 3000) == 171 and max(calls) == 80  # from there on extrapolated
    assert 150 < largest_batch(lambda size: max(needed(size), 1100), 2, 3000) <= 185  # flat at first
    assert largest_batch(lambda size: max(needed(size), 1100), 2, 1099) == 0
    assert largest_batch(needed, 4, 1012) == 0 and largest_batch(needed, 4, 1013) == 1


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


# Compiled


def allocated(code, given):
    """Largest sum of the bytes that the code of inductor holds. given: {input that it frees: bytes}"""
    held, peak = dict(given), 0
    for line in code[code.index("def call(") :].splitlines():
        if found := re.match(r" *(\w+) = empty_strided_cpu\((\(.*?\)), \(.*?\), torch.(\w+)\)", line):
            held[found[1]] = torch.empty(eval(found[2]), dtype=getattr(torch, found[3]), device="meta").nbytes
        elif found := re.match(r" *(\w+) = (?:reinterpret_tensor\()?(\w+).*; +del \w+  # reuse", line):
            held[found[1]] = held.pop(found[2], 0)
        elif found := re.match(r" *del (\w+)$", line):
            held.pop(found[1], None)
        elif line.strip().startswith("return ("):
            break
        peak = max(peak, sum(held.values()))
    return peak


def inductors_code(graph, is_backward):
    """What inductor writes for a graph; it is not built."""
    from torch._inductor import compile_fx
    from torch._inductor import graph as lowering

    class Written(Exception):
        pass

    def codegen(self, write=lowering.GraphLowering.codegen):
        raise Written(write(self)[0].value)

    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match="def call") as caught:
        patch.setattr(lowering.GraphLowering, "codegen", codegen)
        with torch._inductor.config.patch(force_disable_caches=True):
            compile_fx.compile_fx_inner(graph, inputs, is_backward=is_backward)
    return str(caught.value)


@pytest.mark.slow
def test_memory_of_a_compiled_step(monkeypatch):
    """The count on a graph is what inductor's code for it allocates; depths beyond two follow from one and two."""
    monkeypatch.setattr(matmul, "ONEDNN", False)
    monkeypatch.setattr(hardware, "HEAP", 1.0)
    monkeypatch.setattr(model, "training_loss", lambda x, w, y, *more: F.cross_entropy(F.linear(x, w), y))  # as on CUDA
    config = replace(make("gpt2", True).config, vocab_size=512, block_size=64, n_embd=64, n_inner=256, n_head=4)
    make_model = lambda n: Transformer(replace(config, n_layer=n, n_kv_head=2))  # noqa: E731
    known = 8, 64, torch.device("cpu"), torch.bfloat16
    graphs = []
    count = compiled_memory.timeline
    monkeypatch.setattr(compiled_memory, "timeline", lambda graph, heap: graphs.append(graph) or count(graph, heap))
    whole = compiled_memory.moments_of(partial(make_model, 3), *known)
    for graph, is_backward in zip(list(graphs), (False, True), strict=True):
        given = {n.name: n.meta["val"].nbytes for n in graph.graph.nodes if n.op == "placeholder" and is_backward}
        given = {name: size for name, size in given.items() if not name.startswith("primals")}
        peak = allocated(inductors_code(graph, is_backward), given)
        moments = [moment for _, moment in count(graph)]
        assert max(m.fixed + m.scaled for m in moments) == pytest.approx(peak, rel=0.1)
    found = compiled_memory.compiled_moments(make_model, 3, *known)
    for moment, expected in zip(found, whole, strict=True):
        assert moment.fixed + moment.scaled == pytest.approx(expected.fixed + expected.scaled, rel=0.02)


def test_a_dry_run_survives_the_compiler(small, capsys, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such pass\nin this version")

    monkeypatch.setattr(compiled_memory, "moments_of", fail)
    _, out = estimate(capsys, *small, "--compile=True")
    assert "compiled step: not estimated (no such pass" in out and "MB (eager)" in out
    monkeypatch.setattr(summary, "StepMemory", fail)
    assert run(*small, "--dry_run") == 0
    assert "memory: not estimated (no such pass" in capsys.readouterr().out


def test_larger_micro_batches():
    config = TrainConfig(batch_size=12, gradient_accumulation_steps=40)
    for size, largest, expected in ((1, 100, (60, 8)), (8, 100, (60, 8)), (8, 60, (12, 40)), (1, 20, (12, 40))):
        line = larger_micro_batch(config, SimpleNamespace(size=size), largest)
        keys = f"--batch_size={expected[0]} --gradient_accumulation_steps={expected[1]} "
        assert (keys in line) if expected[0] > 12 else line == ""


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


def test_memory_of_a_share(small, tmp_path, monkeypatch):
    words = (*small, "--n_layer=6", "--n_embd=64", "--block_size=32", "--batch_size=4", "--max_iters=2", "--dropout=0")
    words = (*words, "--model_type=llama", "--parallel=fsdp", "--eval_interval=0", "--eval_iters=1")
    script, found = scripted(tmp_path, MEASURE_PEAK)
    status, _, err = finish(Fork(*words, processes=2, script=script))
    assert status == 0, err
    monkeypatch.setattr(hardware, "HEAP", 1.0)
    keys = {"n_layer": 6, "n_embd": 64, "n_head": 2, "block_size": 32, "batch_size": 4, "model_type": "llama"}
    config = TrainConfig(**keys, dtype="float32", compile=False, parallel="fsdp", vocab_size=256).resolved()
    model_config = ModelConfig.of(config)
    world = SimpleNamespace(size=2, device=torch.device("cpu"))
    memory = StepMemory(config, Transformer, model_config, param_groups(Transformer(model_config), 1.0), world)
    memory.held = 0
    assert sum(memory.sharded(2, 4)) == pytest.approx(json.loads(found.read_text())["peak"], rel=0.15)


def test_a_dry_run_lists_shares(small, capsys):
    _, out = estimate(capsys, *small, "--parallel=fsdp", "--n_embd=64")
    rows = [line.split() for line in out.splitlines() if re.match(" +(1|8|64) ", line)]
    assert [row[0] for row in rows] == ["1", "8", "64"]
    shares = [int(row[1].replace(",", "")) for row in rows[1:]]
    assert shares[0] >= shares[1]
