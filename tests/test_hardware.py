"""The memory estimate: what lives at the peak is counted, and what is freed is not."""

import re

import pytest
import torch
from conftest import losses, metrics, run
from torch import nn

from blockwise import hardware
from blockwise.hardware import LiveBytes, largest_batch, training_memory


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
