"""The benchmarks: both sides of a comparison take steps, and a table replaces the one before it."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from throughput import PRODUCTS, into_document, table

SHAPE = ("--layers=1", "--heads=2", "--width=32", "--block=16", "--vocab=64", "--batch=2", "--device=cpu")


@pytest.mark.parametrize("side", ["ours", "nanogpt"])
def test_a_side_steps_when_asked(side):
    command = [sys.executable, "bench/throughput.py", "--model=gpt2", f"--side={side}", *SHAPE]
    done = subprocess.run(command, cwd=ROOT, input="\n\n", capture_output=True, text=True, check=True)
    facts, *times, peak = map(json.loads, done.stdout.splitlines())
    assert facts["first_loss"] == pytest.approx(4.16, abs=0.1)  # ln 64
    assert len(times) == 2 and all(0 < t < 1 for t in times) and peak > 100


def test_a_peer_that_prints(tmp_path):
    """As nanoGPT does while it is built; standard output is for answers alone."""
    loud = "print('number of parameters: 0.04M')\n" + (ROOT / "bench" / "nano.py").read_text()
    (tmp_path / "model.py").write_text(loud)
    words = ("--model=gpt2", "--side=nanogpt", f"--peer_path={tmp_path}", *SHAPE)
    command = [sys.executable, "bench/throughput.py", *words]
    done = subprocess.run(command, cwd=ROOT, input="\n", capture_output=True, text=True, check=True)
    assert len(list(map(json.loads, done.stdout.splitlines()))) == 3 and "number of parameters" in done.stderr


def test_a_table_replaces_the_one_before_it(tmp_path):
    row = {"ms": 10, "tokens_per_s": 3200, "share": 0.5, "peak_mb": 100, "first_step_s": 1, "first_loss": 4.2}
    results = {
        "machine": {"name": "a machine", "cores": 2, "torch": "2", "python": "3", "commit": "abc"},
        "comparisons": [
            {
                "model": "gpt2", "shape": {"layers": 1}, "rounds": 7, "device": "cpu", "dtype": "float32", "threads": 1,
                "rows": {"ours": row, "nanogpt": row}, "product_gflops": dict.fromkeys(PRODUCTS, 80.0),
                "ratios": {"ours / nanogpt": {"median": 1.5, "low": 1.4, "high": 1.6, "memory": 0.7}},
            }
        ],
    }  # fmt: skip
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- measured: cpu -->\nold\n<!-- end: cpu -->\nafter\n")
    for _ in range(2):
        into_document(table(results), path, "cpu")
        into_document(["other"], path, "cuda")
    text = path.read_text()
    assert text.startswith("before\n") and "\nafter\n" in text and "old" not in text
    assert text.count("| ours / nanogpt | 1.50x (1.40 to 1.60) | 0.70x |") == 1 and text.count("other") == 1
