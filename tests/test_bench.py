"""The scripts of bench/: each starts, in its smallest form, and refuses what it does not know."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest
from conftest import ROOT, Fork, finish, state_of, wait_for
from helpers import SHORT, TINY

sys.path.insert(0, str(ROOT / "bench"))

import throughput
import two_hosts
from same_rows import RUNS, SameRowsConfig

from blockwise import UserError
from blockwise.signals import exists
from configurator import configure

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "bench").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)
# (script, its arguments, what it prints)
SMALLEST = [
    ("bench/kills.py", ("--kills=1", "--optimizer=sgd"), "1 kills, 13 rows: all equal, PASS"),
    ("bench/models.py", ("LlamaForCausalLM", "--out={out}/models.md"), "1 of 1 classes split"),
    ("bench/parts.py", ("--tiny", "--rounds=1"), "8 tokens sampled with the cache; without"),
    ("bench/scaling.py", ("--tiny", "--steps=4", "--out={out}/scaling.png"), "batch_size  time ^"),
]
# Those that take other trees, namespaces of root's or a GPU, or have more tests
ELSEWHERE = {"bench/gpu_accept.py", "bench/same_rows.py", "bench/throughput.py", "bench/two_hosts.py"}


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
    assert set(SCRIPTS) - {script for script, _, _ in SMALLEST} == ELSEWHERE


@pytest.mark.parametrize("script, words, printed", SMALLEST, ids=lambda value: value if "/" in value else "")
def test_a_script_in_its_smallest_form(script, words, printed, tmp_path):
    (tmp_path / "models.md").write_text("what stays\n## The classes\nwhat was there")
    status, out, err = finish(Fork(*(word.format(out=tmp_path) for word in words), script=script))
    assert status == 0, err
    assert printed in out
    if script == "bench/models.py":
        text = (tmp_path / "models.md").read_text()
        assert text.startswith("what stays\n## The classes\n\ntransformers ") and "| LlamaForCausalLM | 131 |" in text
    assert "scaling" not in script or (tmp_path / "scaling.png").stat().st_size


FORKING = """
import sys
sys.path.insert(0, "bench")
import torch, harness, train
print(harness.fork_train(sys.argv[2:], sys.argv[1]), flush=True)
input()
"""


def test_nothing_is_left_of_a_script_that_is_ended(tmp_path, data_dir):
    """A run that it forked is in a session of its own, which no signal to the script reaches."""
    words = [*TINY, *SHORT, "--max_iters=100000", f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}"]
    command = [sys.executable, "-c", FORKING, tmp_path / "log", *words]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams) as script:
        run = int(script.stdout.readline())
        wait_for(tmp_path / "out/metrics.jsonl", "train/loss", script, 60)
        script.terminate()
    end = time.monotonic() + 30
    while exists(run) and time.monotonic() < end:
        time.sleep(0.05)
    if exists(run):
        os.kill(run, signal.SIGKILL)
        raise AssertionError("the run went on")


class InThread(threading.Thread):
    """In place of a process, which would load torch."""

    def __init__(self, target, args, daemon):
        pipe = Connection(os.dup(args[0].fileno()))
        super().__init__(target=target, args=(pipe, *args[1:]), daemon=daemon)


def test_throughput_in_its_smallest_form(tmp_path, monkeypatch, capsys):
    """Against a checkout, whose model prints while it is built, as nanoGPT's does."""
    threads = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=InThread)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: threads)
    loud = "print('number of parameters: 0.04M')\n"
    (tmp_path / "model.py").write_text(loud + (ROOT / "bench/nano.py").read_text())
    words = ("--model=gpt2", "--eager", "--rounds=1", "--device=cpu", "--shape=1,2,16,16,64,2")
    throughput.main([*words, f"--peer_path={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    rows = {row[1].strip(): row[2:-1] for row in (line.split("|") for line in lines) if len(row) > 2}
    assert "number of parameters: 0.04M" in lines
    assert [float(rows[side][-1]) for side in ("ours", "nanogpt")] == pytest.approx([4.16] * 2, abs=0.1)  # ln 64
    assert "x (" in rows["ours / nanogpt"][0]
    with pytest.raises(UserError, match="shape=1,2: expected six numbers"):
        throughput.main(["--shape=1,2"])


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
