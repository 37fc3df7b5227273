"""SIGKILL at random moments: does a run that is resumed again and again end as one that was never stopped?

    python bench/kills.py                                    # 100 kills of a run that evaluates, saves and measures
    python bench/kills.py --kills=20 --draw=2 --optimizer=muon --ema_decay=0.99      # other keys go to train.py

The moments are uniform over the time that a start takes and two evaluations with their saves, so that kills fall
into imports, set-up, steps, evaluations, saves and resumes alike. After each kill the newest checkpoint may not be
older than before, and no row before it may be missing. At the end every row and every weight must be bitwise that of
a run without a kill. Exit status 1 where they are not.
"""

import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has one thread alone

import torch
from harness import fork_train, wait, write_text
from same_rows import COMMON, difference_of

import train  # noqa: F401  (loaded once, for the forks)
from blockwise import exit_on_user_error
from blockwise.checkpoint import load_checkpoint, manifests, newest_checkpoint
from blockwise.curves import read_rows
from blockwise.keys import Keys, Range
from blockwise.settings import TrainConfig
from configurator import configure

KEYS = ("--model_type=llama", "--dropout=0.1", "--sharpness_interval=20", "--curvature_interval=10", "--qk_clip=1")
STEPS_PER_KILL, EVALUATION = 12, 10


@dataclass
class KillsConfig(Keys):
    """The keys of kills.py; the others are train.py's."""

    kills: Annotated[int, "number of kills", Range(1)] = 100
    draw: Annotated[int, "seed of their moments"] = 0


class Failed(Exception):
    """Something that a kill must not do."""


def main(argv):
    names = {f"--{field.name}" for field in fields(KillsConfig)} | {"--help", "-h"}
    config, _, _ = configure(KillsConfig, [word for word in argv if word.partition("=")[0] in names], __doc__)
    more = [word for word in argv if word.partition("=")[0] not in names]
    configure(TrainConfig, more, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(f"{config.kills} kills, {kill(config, more, Path(folder))} rows: all equal, PASS")
            return 0
        except Failed as failure:
            print(f"FAIL: {failure}")
            return 1


def kill(config, more, folder):
    """Number of rows, which are all as they are to be. Raises Failed where anything is not."""
    write_text(folder / "data")
    straight, out, log = folder / "straight", folder / "killed", folder / "log"
    steps = max(EVALUATION, STEPS_PER_KILL * config.kills)
    keys = [*COMMON, *KEYS, *more, f"--data_dir={folder / 'data'}", f"--eval_interval={EVALUATION}"]
    keys += [f"--max_iters={steps}", f"--lr_decay_iters={steps}", "--init_from=auto"]

    def check_status(status, what):
        if status:
            raise Failed(f"{what} ended with status {status}: {log.read_text()[-300:]}")

    began = time.monotonic()
    check_status(wait(fork_train([*keys, f"--out_dir={straight}"], log)), "the run without kills")
    length = 2 * EVALUATION * (time.monotonic() - began) / steps + 2  # seconds
    moments, newest = random.Random(config.draw), -1
    for number in range(1, config.kills + 1):
        process = fork_train([*keys, f"--out_dir={out}"], log)
        end, status = time.monotonic() + moments.uniform(0, length), None
        while time.monotonic() < end and status is None:
            time.sleep(0.002)
            status = wait(process, os.WNOHANG)
        if status is not None:  # it ended before its kill
            check_status(status, f"a start after {number - 1} kills")
            break
        os.kill(process, signal.SIGKILL)
        wait(process)
        newest = newest_step(out, newest)
        if number % 10 == 0:
            print(f"{number} kills, checkpoint of step {max(newest, 0)} of {steps}", flush=True)
    check_status(wait(fork_train([*keys, f"--out_dir={out}"], log)), "the last start")
    rows = [read_rows(folder) for folder in (straight, out)]
    first, second = (load_checkpoint(newest_checkpoint(folder))["model"] for folder in (straight, out))
    weights = [name for name, p in first.items() if not torch.equal(p, second[name])]
    if problem := difference_of(*rows) or (weights and f"weights differ: {weights[:3]}"):
        raise Failed(problem)
    return len(rows[0])


def newest_step(out, before):
    """Step of the newest checkpoint (-1: none). Raises Failed if it is older than before, or lacks rows."""
    if not manifests(out):
        if before >= 0:
            raise Failed("the checkpoints are gone")
        return before
    step = int(newest_checkpoint(out).stem.removeprefix("ckpt_"))
    missing = sorted(set(range(step)) - {row["step"] for row in read_rows(out)})
    if step < before or missing:
        raise Failed(f"newest checkpoint {step}, before {before}; rows missing: {missing[:5]}")
    return step


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
