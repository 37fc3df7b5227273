"""Where the checks run, and how they run train.py and its like: in processes of their own, with a time limit."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from harness import ROOT, torchrun

from blockwise.curves import read_rows
from blockwise.data.writing import write_dataset
from blockwise.tokenizer import BYTES

PHASE_SECONDS = 540  # of each phase, at most
PATIENCE = 4  # times as long without a GPU, where the machine has other work
# train.py allows TF32 on CUDA, which is too coarse for a comparison with a CPU
FULL_FLOAT32 = "import torch; torch.set_float32_matmul_precision = lambda precision: None"
# On a CPU the tiny form tests this script and not the compiler, which takes a minute for a graph in C++
NO_COMPILER = "import functools, torch; torch.compile = functools.partial(torch.compile, backend='aot_eager')\n"
# Another code path for the CPU's kernels, so that on a CPU too the two sides of a comparison differ
REFERENCE = {"ATEN_CPU_CAPABILITY": "default"}
COMMON = (
    "--eval_iters=4", "--gradient_accumulation_steps=2", "--warmup_iters=2", "--learning_rate=1e-4", "--min_lr=1e-5",
    "--dataset=made_up", "--compile=False", "--dtype=float32",
)  # fmt: skip
TINY = ("--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=32", "--batch_size=4")
SMALL = ("--n_layer=4", "--n_head=4", "--n_embd=128", "--block_size=256", "--batch_size=8")


@dataclass
class Place:
    """device: "cpu" or "cuda..."; tiny: the small form of every check; data_dir: of data sets made beforehand, or None;
    scratch: an empty folder for data and runs; began: when the phase did."""

    device: str
    tiny: bool
    data_dir: Path | None
    scratch: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def cuda(self):
        return self.device.startswith("cuda")

    @property
    def this_device(self):
        """Environment of a process that has this device alone, as cuda:0."""
        if ":" not in self.device:
            return {}
        number = int(self.device.removeprefix("cuda:"))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(number + 1)))).split(",")
        return {"CUDA_VISIBLE_DEVICES": visible[number]}

    def no_cuda(self, why):
        """Why a check is skipped without a GPU; nothing where there is one."""
        return "" if self.cuda else why

    def time_left(self, limit):
        """Seconds for something that may take `limit` of them, less towards the end of the phase."""
        times = 1 if self.cuda else PATIENCE
        return max(5.0, min(times * limit, self.began + times * PHASE_SECONDS - time.monotonic()))

    def common(self, steps):
        """Keys of a run that is compared: small, in float32, so many steps long, evaluated at its ends."""
        ends = (f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={steps}")
        return (*COMMON, *(TINY if self.tiny else SMALL), *ends, f"--data_dir={self.scratch / 'data'}")


@dataclass
class Job:
    """What to run. words: the arguments of the script; out: the name of the out_dir, by default the job's own."""

    words: tuple
    script: str = "train.py"
    out: str = ""


class Run:
    """What a job left behind. Its properties raise RuntimeError where it has not ended, or ended badly."""

    def __init__(self, name, folder, out_dir):
        self.name, self.folder, self.out_dir = name, folder, out_dir
        self.why = "it was not reached"

    @property
    def result(self):
        """{"status", "seconds", "devices", "graphs", "breaks"}"""
        path = self.folder / "result.json"
        if not path.exists():
            raise RuntimeError(f"{self.name} has no result: {self.why}")
        return json.loads(path.read_text())

    def text(self, stream):
        path = self.folder / stream
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def done(self):
        """This run, if it ended with exit status 0."""
        if status := self.result["status"]:
            last = (self.text("stderr").strip() or "nothing on stderr").splitlines()[-1]
            raise RuntimeError(f"{self.name} ended with status {status}: {last}")
        return self

    @property
    def rows(self):
        """Its rows of metrics.jsonl, by step."""
        return {row["step"]: row for row in read_rows(self.done.out_dir)}

    def column(self, key):
        """{step: value} where the rows have it."""
        return {step: float(row[key]) for step, row in self.rows.items() if key in row}

    def last(self, key):
        return list(self.column(key).values())[-1]

    def lines(self, text):
        """How many lines on stderr have a text; a traceback is an error."""
        lines = self.text("stderr").splitlines()
        if "Traceback (most recent call last):" in lines:
            raise RuntimeError(f"{self.name} ended in a traceback: {lines[-1]}")
        return sum(text in line for line in lines)

    @property
    def errors(self):
        """How many lines on stderr are a user's mistake."""
        return sum(line.startswith("error: ") for line in self.text("stderr").splitlines())

    @property
    def error(self):
        """Its one line on stderr that begins with "error:", for a run that the user has to mend."""
        lines = [line for line in self.text("stderr").splitlines() if "error:" in line or line.startswith("Traceback")]
        if len(lines) != 1 or not lines[0].startswith("error:"):
            raise RuntimeError(f"{self.name}: {len(lines)} lines of an error instead of one: {' / '.join(lines[:3])}")
        return lines[0]


class Batch:
    """Jobs that run one after the other in a process, started at once. `wait` gives {name: Run}."""

    def __init__(self, place, label, jobs, limit=240, before="", env=None):
        """jobs: {name: Job}; limit: seconds for all of them; before: Python that runs first; env: variables."""
        self.limit, self.jobs, work, self.runs = place.time_left(limit), jobs, [], {}
        folder = place.scratch / "jobs" / label
        for name, job in jobs.items():
            (folder / name).mkdir(parents=True)
            out = place.scratch / "out" / (job.out or f"{label}_{name}")
            out_dir = [f"--out_dir={out}"] if job.script == "train.py" else []
            work.append({"script": job.script, "words": [*job.words, *out_dir], "folder": str(folder / name)})
            self.runs[name] = Run(name, folder / name, out)
        path = folder / "jobs.json"
        path.write_text(json.dumps({"before": before if place.cuda else NO_COMPILER + before, "jobs": work}))
        self.end, self.log = time.monotonic() + self.limit, folder / "log"
        command = [sys.executable, str(ROOT / "bench/accept/driver.py"), str(path)]
        with open(self.log, "w") as log:
            self.process = start(command, threads=1 if place.tiny else 4, env=env, stdout=log, stderr=log)

    def wait(self):
        status = wait_or_kill(self.process, self.end)
        why = f"its process did not end in {self.limit:.0f} s" if status is None else f"exit status {status}"
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        for name, run in self.runs.items():
            run.why = " ".join([why, *last])
            if not self.jobs[name].out:  # nobody comes back to it, and those of 124M parameters would fill the disk
                for checkpoint in run.out_dir.glob("ckpt_*"):
                    checkpoint.unlink() if checkpoint.is_file() else shutil.rmtree(checkpoint)
        return self.runs


def run_one(place, label, words):
    """train.py with these words in a process of its own, as a Run."""
    return Batch(place, label, {label: Job(words)}).wait()[label]


def start(command, threads, env=None, **streams):
    """A process group of its own, with so many threads on the CPU; it ends when this process does."""
    own = {"OMP_NUM_THREADS": str(threads), "WANDB_MODE": "disabled", "LAUNCHED_BY": str(os.getpid())}
    variables = {**os.environ, **own, **(env or {})}
    return subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **streams)


def wait_or_kill(process, end):
    """Exit status; None where time was over first and the whole group was killed."""
    try:
        return process.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def launch(place, label, words, limit=120, env=None):
    """train.py on two processes of torchrun, as a Run; its status is the launcher's."""
    folder, out = place.scratch / "jobs" / label, place.scratch / "out" / label
    folder.mkdir(parents=True)
    with open(folder / "stdout", "w") as stdout, open(folder / "stderr", "w") as stderr:
        command = [sys.executable, *torchrun(2), *words, f"--out_dir={out}"]
        process = start(command, threads=1, env=env, stdout=stdout, stderr=stderr)
        limit = place.time_left(limit)
        status = wait_or_kill(process, time.monotonic() + limit)
    run = Run(label, folder, out)
    run.why = f"it did not end in {limit:.0f} s"
    if status is not None:
        (folder / "result.json").write_text(json.dumps({"status": status}))
    return run


def write_data(folder):
    """The data sets made_up, bytes of sentences with a pattern to learn, documents, the same with their ends, and bad,
    with an id that is none in a hundredth of the batches."""
    words = b"the cat sat on a mat and the dog ate that hat while a bird sang of rain".split()
    rng = np.random.default_rng(0)
    text = np.frombuffer(b" ".join(words[i] for i in rng.integers(len(words), size=200_000)), np.uint8)
    ended = np.where(rng.random(len(text)) < 0.02, 0, text)  # a document has about 50 bytes
    cut = len(text) * 9 // 10
    sets = {"made_up": (text, BYTES), "bad": (text, BYTES), "documents": (ended, BYTES | {"end_of_text": 0})}
    with contextlib.redirect_stdout(io.StringIO()):
        for name, (ids, tokenizer) in sets.items():
            write_dataset(folder / name, {"train": ids[:cut], "val": ids[cut:]}, tokenizer, "made up")
    with open(folder / "bad" / "train.bin", "r+b") as file:
        file.seek(cut // 2 * 2)
        file.write(b"\xff\xff")
