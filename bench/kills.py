"""SIGKILL at random moments: does a run that is resumed again and again end as one that was never stopped?

    python bench/kills.py                                    # 100 kills of a run that evaluates, saves and measures
    python bench/kills.py --kills=20 --seed=2 --optimizer=muon --ema_decay=0.99      # other keys go to train.py

The moments are uniform over the time that a start takes and two evaluations with their saves, so that kills fall
into imports, set-up, steps, evaluations, saves and resumes alike. After each kill the newest checkpoint may not be
older than before, and no row before it may be missing. At the end every row and every weight must be bitwise that of
a run without a kill. Exit status 1 where they are not.
"""

import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork keeps one thread alone

import torch
from same_rows import COMMON, difference_of, write_text

import train  # noqa: F401  (loaded once, so that a start takes a second and not five)
from blockwise.checkpoint import load_checkpoint, manifests, newest_checkpoint

KEYS = ("--model_type=llama", "--dropout=0.1", "--sharpness_interval=20", "--curvature_interval=10", "--qk_clip=1")
STEPS_PER_KILL, EVALUATION = 12, 10


def main(argv):
    options = {"--kills": 100, "--seed": 0}
    for argument in argv:
        key, _, value = argument.partition("=")
        if key in options:
            options[key] = int(value)
    extra = [argument for argument in argv if argument.partition("=")[0] not in options]
    rng, kills = random.Random(options["--seed"]), options["--kills"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_text(folder / "data" / "made_up")
        steps = max(EVALUATION, STEPS_PER_KILL * kills)
        keys = [*COMMON, *KEYS, *extra, f"--data_dir={folder / 'data'}", f"--eval_interval={EVALUATION}"]
        keys += [f"--max_iters={steps}", f"--lr_decay_iters={steps}", "--init_from=auto"]
        began = time.monotonic()
        status = wait(start([*keys, f"--out_dir={folder / 'straight'}"], folder / "log"))
        if status:
            sys.exit(f"the run without kills failed with status {status}: {(folder / 'log').read_text()[-300:]}")
        length = 2 * EVALUATION * (time.monotonic() - began) / steps + 2  # seconds
        out, done, newest = folder / "killed", 0, -1
        while True:
            process = start([*keys, f"--out_dir={out}"], folder / "log")
            end = time.monotonic() + rng.uniform(0, length) if done < kills else float("inf")
            while (status := poll(process)) is None and time.monotonic() < end:
                time.sleep(0.002)
            if status is not None:
                break
            os.kill(process, signal.SIGKILL)
            wait(process)
            done += 1
            newest = check(out, newest)
            if done % 10 == 0:
                print(f"{done} kills, checkpoint of step {max(newest, 0)} of {steps}", flush=True)
        if status:
            print(f"FAIL: after {done} kills a start ended with status {status}: {(folder / 'log').read_text()[-300:]}")
            return 1
        return compare(folder / "straight", out, done)


def start(keys, log):
    """train.py in a fork; returns its process id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv, status = ["train.py", *keys], 1
    os.chdir(ROOT)
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def poll(process):
    """Exit status, None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check(out, before):
    """Step of the newest checkpoint (-1: none). Ends the program if it is older than before, or lacks rows."""
    committed = manifests(out)
    if not committed:
        return before if before < 0 else sys.exit("FAIL: the checkpoints are gone")
    step = int(newest_checkpoint(out).stem.removeprefix("ckpt_"))
    lines = (out / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    rows = {json.loads(line)["step"] for line in lines}
    if step < before or not rows >= set(range(step)):
        missing = sorted(set(range(step)) - rows)[:5]
        sys.exit(f"FAIL: newest checkpoint {step}, before {before}; rows missing: {missing}")
    return step


def compare(straight, killed, kills):
    rows = [list(map(json.loads, (out / "metrics.jsonl").read_text().splitlines())) for out in (straight, killed)]
    difference = difference_of(*rows)
    first, second = (load_checkpoint(newest_checkpoint(out))["model"] for out in (straight, killed))
    weights = [name for name, p in first.items() if not torch.equal(p, second[name])]
    problem = difference or (f"weights differ: {weights[:3]}" if weights else None)
    print(f"{kills} kills, {len(rows[0])} rows: {'FAIL: ' + problem if problem else 'all equal, PASS'}")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
