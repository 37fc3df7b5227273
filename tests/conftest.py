"""Shared by the tests: a tiny data set, and ways to run train.py in this process or in others."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start: two test workers share two cores
os.environ["WANDB_MODE"] = "offline"

import torch

import train
from blockwise import matmul
from blockwise.data.writing import write_dataset
from blockwise.settings import TrainConfig
from blockwise.tokenizer import BYTES
from configurator import configure

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and would be in all that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)  # likewise in the background of a shell
if "TEST_ONEDNN" in os.environ:  # 0 or 1: the products of another maker's processor
    matmul.ONEDNN = os.environ["TEST_ONEDNN"] == "1"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["conftest", "measure", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"]
)  # in 4 s

SMALL = (
    "--dataset=tiny", "--device=cpu", "--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=2",
    "--gradient_accumulation_steps=4", "--eval_iters=4", "--eval_interval=4", "--max_iters=8", "--lr_decay_iters=8",
    "--warmup_iters=2", "--learning_rate=1e-3", "--dropout=0.1",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="the tests marked slow, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: `make test-slow` runs it"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the data set `tiny`: 20,000 bytes of words with a pattern to learn."""
    words = b"the cat sat on a mat and the dog ate that hat ".split()
    rng = np.random.default_rng(0)
    text = b" ".join(words[i] for i in rng.integers(len(words), size=6000))[:20000]
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "tiny", {"train": list(text[:18000]), "val": list(text[18000:])}, BYTES, "made up")
    return folder


@pytest.fixture
def small(data_dir, tmp_path):
    """Words for a run of seconds, into tmp_path/out."""
    return (*SMALL, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}")


@pytest.fixture(scope="session")
def finished_run(data_dir, tmp_path_factory):
    """The folder of a finished run of SMALL, to be read only."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert run(*SMALL, f"--data_dir={data_dir}", f"--out_dir={folder}") == 0
    return folder


@pytest.fixture
def finished(small, finished_run):
    """The words of `small`, whose run has been made: a copy of the finished one."""
    shutil.copytree(finished_run, out_dir(small))
    return small


@pytest.fixture
def no_figures(monkeypatch):
    """measure.py without its figures, which take longer than what they show."""
    monkeypatch.setattr("measure.draw", lambda config: None)


def run(*words, stop=False):
    """train.py in this process; returns its exit status, raises UserError."""
    config, given, flags = configure(TrainConfig, words, "", train.FLAGS)
    return train.main(config, given, flags, stop)


def command(words, processes=1, script="train.py", options=()):
    if processes == 1:
        return [sys.executable, script, *words]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, *options, script, *words]


def start(*words, processes=1, script="train.py", options=(), env=None):
    """train.py, or another script, in its own process group; returns the Popen."""
    return subprocess.Popen(
        command(words, processes, script, options), cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})},
    )  # fmt: skip


class Fork:
    """train.py, or another script, in a fork of a process that has loaded torch. Used as the Popen of `start`.

    processes: as many as torchrun would start, and its store here, but no launcher that watches over them.
    `start` is for what concerns the launcher, the time before torch is loaded, and Python's own end (wandb's).
    """

    def __init__(self, *words, processes=1, script="train.py", env=None):
        self.folder = tempfile.TemporaryDirectory()
        self.texts = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        for path in self.texts:
            path.touch()
        worlds = [{}]
        if processes > 1:
            self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
            world |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            worlds = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
        self.workers = []
        for world in worlds:
            variables = {key: str(value) for key, value in {**world, **(env or {})}.items()}
            job = (script, words, variables, self.texts)
            self.workers.append(SERVER.Process(target=run_script, args=job, daemon=True))
            self.workers[-1].start()
        self.pids = [worker.pid for worker in self.workers]
        self.pid = self.pids[0]

    def poll(self):
        """The exit status, 0 if that of all processes is; None before they have ended."""
        statuses = [worker.exitcode for worker in self.workers]
        return None if None in statuses else next(filter(None, statuses), 0)

    returncode = property(poll)

    def communicate(self, timeout=None):
        """Wait for the end; returns (stdout, stderr)."""
        end = None if timeout is None else time.monotonic() + timeout
        for worker in self.workers:
            worker.join(None if end is None else max(0, end - time.monotonic()))
        if self.poll() is None:
            raise subprocess.TimeoutExpired("Fork", timeout)
        return [path.read_text() for path in self.texts]

    def kill(self):
        for worker in self.workers:
            worker.kill()

    def send_signal(self, number):
        os.kill(self.pid, number)


def run_script(script, words, variables, texts):
    """In the fork: what Python does with a script and its arguments. texts: files for stdout and stderr."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.update(variables)
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = [script, *map(str, words)]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")


def wait_for(path, text, process, timeout=300):
    """Until a file that a started process writes holds a text."""
    end = time.monotonic() + timeout
    ended = False
    while time.monotonic() < end and not ended:
        ended = process.poll() is not None  # before the look: what it wrote last counts too
        if path.exists() and text in path.read_text(errors="replace"):
            return
        time.sleep(0.02)
    kill_all(process)
    raise AssertionError(f"{text!r} did not come; exit status {process.poll()}")


def finish(process, timeout=300):
    """Wait for a started process; returns (exit status, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    return process.returncode, out, err


def kill_all(process):
    """SIGKILL for a started process and its workers, which torchrun puts into sessions of their own."""
    pids = process.pids if isinstance(process, Fork) else [process.pid, *workers_of(process.pid)]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def workers_of(pid):
    """Living child processes."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and state_of(entry)[1] == pid]


def state_of(pid):
    """State letter and parent of a process, (None, None) if it is gone or only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, parent = file.read().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return None, None
    return (None, None) if state == "Z" else (state, int(parent))


def metrics(words):
    """Rows of metrics.jsonl by step, of the run that `words` describe."""
    return {row["step"]: row for row in map(json.loads, (out_dir(words) / "metrics.jsonl").read_text().splitlines())}


def out_dir(words):
    return Path([w for w in words if w.startswith("--out_dir=")][-1].removeprefix("--out_dir="))


def losses(words):
    """{step: (train loss, val loss)}, None where a row has none."""
    return {step: (row.get("train/loss"), row.get("val/loss")) for step, row in metrics(words).items()}


def assert_same(a, b):
    """Two trees of plain data and tensors, bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    else:
        assert a == b


# Of a prepared data set


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def ids_of(folder, split):
    return np.fromfile(folder / f"{split}.bin", dtype="<u2").tolist()


def meta_of(folder):
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))
