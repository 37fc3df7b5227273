"""What the scripts of bench/ share: made-up text, a model's shape, runs of train.py, times in turns."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from blockwise import UserError
from blockwise.data.writing import write_dataset
from blockwise.tokenizer import BYTES


def write_text(folder):
    """Write the data set made_up into a folder: 20,000 bytes of words with a pattern to learn."""
    words = b"the cat sat on a mat and the dog ate that hat ".split()
    rng = np.random.default_rng(0)
    text = b" ".join(words[i] for i in rng.integers(len(words), size=6000))
    with contextlib.redirect_stdout(io.StringIO()):
        splits = {"train": list(text[:18000]), "val": list(text[18000:20000])}
        write_dataset(Path(folder) / "made_up", splits, BYTES, "made up")


def model_config(model, vocab=4096, block=256, layers=4, heads=4, width=128):
    """A LLaMA or a GPT-2 without biases and dropout."""
    from model import ModelConfig

    llama = model == "llama"
    return ModelConfig(
        model, vocab, block, layers, heads, heads, width, 4 * width, bias=False, dropout=0.0, rope_theta=10000.0,
        norm_eps=1e-6 if llama else 1e-5, tie_weights=not llama,
    )  # fmt: skip


def in_turns(sides, rounds, repeats=1):
    """{name: seconds of a call, one a round} of functions that take turns, after a round that does not count."""

    def seconds(function):
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - started) / repeats

    times = [{name: seconds(function) for name, function in sides.items()} for _ in range(rounds + 1)][1:]
    return {name: [turn[name] for turn in times] for name in sides}


def ratios(numerators, denominators):
    """(median, lowest, highest) of the ratios, round by round: the machine's drift cancels."""
    values = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    return median(values), values[0], values[-1]


def times_as_fast(ours, others):
    """'1.61x (1.16 to 1.99)' of the seconds of two sides."""
    return "{:.2f}x ({:.2f} to {:.2f})".format(*ratios(others, ours))


def fork_train(words, log, threads=1):
    """train.py in a fork of this process, which must have imported it: a start takes one second and not five.

    Its output goes to the file `log`. Returns the process id, for `wait`.
    """
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        os.environ["LAUNCHED_BY"] = str(os.getppid())  # it ends by itself when this script is ended
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(ROOT)
        sys.modules["torch"].set_num_threads(threads)
        sys.argv = ["train.py", *words]
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(process, options=0):
    """Exit status of a forked process; with os.WNOHANG None while it runs."""
    ended, status = os.waitpid(process, options)
    return os.waitstatus_to_exitcode(status) if ended else None


def run_python(words, threads=None, **options):
    """Python on these words, in a process of its own. Raises UserError with the last two lines of one that fails."""
    environment = {**os.environ, "LAUNCHED_BY": str(os.getpid()), **options.pop("env", {})}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, **options}
    done = subprocess.run([sys.executable, *words], **options)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"{' '.join(words)[:200]}: {' / '.join(lines[-2:])}")


def torchrun(processes):
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "train.py"]
