"""The scripts of bench/ and experiments/: each starts, in its smallest form, and refuses what it does not know."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, Fork, finish, state_of
from helpers import study_of_lines

sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "experiments"))

import two_hosts
from same_rows import RUNS, SameRowsConfig
from throughput import PRODUCTS, into_document, table

from blockwise import UserError
from configurator import configure

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("bench", "experiments")
    for path in (ROOT / folder).glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)
SHAPE = ("--layers=1", "--heads=2", "--width=16", "--block=16", "--vocab=64", "--batch=2")
# (script, its arguments, what it prints)
SMALLEST = [
    ("bench/curvature.py", ("accuracy", "--tiny", "--warmup=1", "--steps=1", "--dataset=tiny", "--data_dir={data}",
                            "--out={out}/errors.png"), "krylov, cold, twice the products"),
    ("bench/curvature.py", ("cost", "--rounds=1", *SHAPE), "beside 20 times a whole step"),
    ("bench/kills.py", ("--kills=1", "--optimizer=sgd"), "1 kills, 13 rows: all equal, PASS"),
    ("bench/models.py", ("LlamaForCausalLM", "--out={out}/models.md"), "1 of 1 classes split"),
    ("bench/parts.py", ("--tiny", "--rounds=1"), "8 tokens sampled with the cache; without"),
    ("bench/scaling.py", ("--tiny", "--steps=4", "--out={out}/scaling.png"), "batch_size  time ^"),
    ("bench/throughput.py", ("--model=gpt2", "--eager", "--rounds=1", "--device=cpu", "--peer_path={out}", *SHAPE,
                             "--out={out}/throughput.json"), "| ours / nanogpt |"),
    ("experiments/maps.py", ("{out}/lines",), "| tables | 0.003 |"),
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_scripts_grammar(script, capsys):
    """--help answers, with the docstring; what a script does not know, it refuses."""
    names = runpy.run_path(script)
    with pytest.raises(SystemExit) as end:
        names["main"](["--help"])
    assert not end.value.code and names["__doc__"].strip() in capsys.readouterr().out
    words = ["all"] * (script == "bench/gpu_accept.py") + ["--nonsense=1"]
    with pytest.raises(UserError, match="nonsense"):
        names["main"](words)


def test_every_script_is_started():
    """Here, or, where it takes other trees, namespaces of root's or a GPU, in a test of its own."""
    elsewhere = {"bench/gpu_accept.py", "bench/same_rows.py", "bench/two_hosts.py"}
    elsewhere |= {"experiments/quadratic.py", "experiments/ratios.py"}
    assert set(SCRIPTS) - {script for script, _, _ in SMALLEST} == elsewhere


@pytest.mark.parametrize("script, words, printed", SMALLEST, ids=lambda value: value if "/" in value else "")
def test_a_script_in_its_smallest_form(script, words, printed, data_dir, tmp_path):
    loud = "print('number of parameters: 0.04M')\n"  # as nanoGPT does while it is built
    (tmp_path / "model.py").write_text(loud + (ROOT / "bench/nano.py").read_text())
    study_of_lines(tmp_path / "lines")
    words = [word.format(data=data_dir, out=tmp_path) for word in words]
    status, out, err = finish(Fork(*words, script=script))
    assert status == 0, err
    assert printed in out
    assert all((tmp_path / word.rpartition("/")[2]).stat().st_size for word in words if word.startswith("--out="))
    if script == "bench/throughput.py":
        (found,) = json.loads((tmp_path / "throughput.json").read_text())["comparisons"]
        assert [row["first_loss"] for row in found["rows"].values()] == pytest.approx([4.16] * 2, abs=0.1)  # ln 64
        assert "number of parameters" in err


def test_the_revisions_of_same_rows():
    config = configure(SameRowsConfig, ["HEAD~1", "1234567", "--only=muon"], "")[0]
    assert config.revisions == ["HEAD~1", "1234567"] and config.only == ["muon"]
    assert configure(SameRowsConfig, ["HEAD"], "")[0].only == list(RUNS)
    for words in (["a", "b", "c"], ["HEAD", "--only=muonn"], []):
        with pytest.raises(UserError):
            configure(SameRowsConfig, words, "")


@pytest.fixture
def hosts():
    if os.geteuid() or subprocess.run(["ip", "netns", "add", "of-the-tests"], capture_output=True).returncode:
        pytest.skip("network namespaces need root, and Linux")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    two_hosts.ip("netns delete of-the-tests")


def test_two_hosts_leave_nothing_behind(hosts):
    """However it ends; and what is not theirs they leave alone."""
    with pytest.raises(SystemExit) as end, two_hosts.Hosts() as made:
        started = [made.start(host, ["sh", "-c", "sleep 100 & sleep 100"], os.devnull) for host in (0, 1)]
        while len(two_hosts.ip(f"netns pids {made.names[1]}").split()) < 2:
            time.sleep(0.01)
        assert set(made.names) < set(two_hosts.ip("netns list").split())
        inside = two_hosts.ip(f"netns pids {made.names[1]}").split()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert end.value.code == 128 + signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
    assert {state_of(pid)[0] for pid in inside} == {None}
    left = two_hosts.ip("netns list").split()
    assert "of-the-tests" in left and not set(made.names) & set(left)


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
