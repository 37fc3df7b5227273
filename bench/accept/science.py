"""The phase science: config/kjv_bytes.py on the device; the best rule as it comes, against a swept AdamW.

All arms see 480 million tokens, in nine minutes only where the vocabulary is small.
"""

import math
import subprocess
import sys
from functools import partial

from harness import ROOT

from accept.report import REPORTED, Bound, at_most
from accept.runs import TINY, Batch, Job

SHAPE = ("--n_layer=6", "--n_head=6", "--n_embd=384", "--n_inner=1024", "--block_size=512", "--batch_size=64")
TOKENS = 160e6
RATES = (1e-3, 2e-3, 4e-3)  # of AdamW; the best at a quarter of the tokens is taken at all of them
RULE = "--lr_rule=fitted --learning_rate=1e-3"  # lower than a swept AdamW in all studies so far, untuned
LEARNED = Bound("<1", lambda value: value < 1)  # of a last loss over the first one; false for NaN


def checks(report, place):
    folder = place.scratch / "science"
    command = [sys.executable, str(ROOT / "data/pylib/prepare.py"), f"--data_dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, timeout=place.time_left(120))
    report.section("science/demo", demo_checks, place, folder)
    report.section("science/arms", arm_checks, place, folder)


def data_of(place, folder, names=None):
    """Keys of the largest data set beside the others of data_dir, of these names if given; else of Python's library."""
    found = [path.parent for path in place.data_dir.glob("*/train.bin")] if place.data_dir else []
    found = [path for path in found if names is None or path.name in names]
    best = max(found, key=lambda path: (path / "train.bin").stat().st_size, default=folder / "pylib")
    return f"--data_dir={best.parent}", f"--dataset={best.name}"


def last_over_first(run):
    """The final validation loss over that before training."""
    return final(run) / run.column("val/loss")[0]


def final(run):
    return run.last("val/loss")


def learning_checks(report, name, run, limit=REPORTED):
    report.check(f"{name}/last_over_first_loss", LEARNED, partial(last_over_first, run))
    report.check(f"{name}/loss", limit, partial(final, run))


def demo_checks(report, place, folder):
    keys = (*data_of(place, folder, {"kjv"}), f"--device={place.device}")
    keys += ("--max_iters=15", "--lr_decay_iters=15", "--warmup_iters=3", "--eval_iters=2") if place.tiny else ()
    one_rate = ("--blockwise=False", "--learning_rate=4e-3", "--min_lr=2e-4")
    arms = {"blockwise": ("config/kjv_bytes.py",), "adamw": ("config/kjv_bytes.py", *one_rate)}
    runs = Batch(place, "demo", {arm: Job((*files, *keys)) for arm, files in arms.items()}).wait()
    limit = at_most(math.log(256) if place.tiny else 2.2)  # nats a byte; 1.5 on the King James Bible
    for arm, run in runs.items():
        learning_checks(report, f"science/demo/{arm}", run, limit)


def arm_checks(report, place, folder):
    quarter, whole = (10, 30) if place.tiny else (round(TOKENS * share / (64 * 512)) for share in (1 / 4, 1))
    keys = (*(TINY if place.tiny else SHAPE), *data_of(place, folder), f"--device={place.device}", "--model_type=llama")
    keys += ("--gradient_accumulation_steps=1", "--min_lr_ratio=0.05", "--log_interval=20")
    keys += ("--eval_iters=4",) if place.tiny else ("--eval_iters=16",)

    def job(steps, arm):
        lengths = (f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--warmup_iters={steps // 10}")
        return Job((*keys, *lengths, "--eval_interval=0", *arm.split()))

    jobs = {f"adamw_{rate:g}": job(quarter, f"--blockwise=False --learning_rate={rate:g}") for rate in RATES}
    runs = Batch(place, "quarter", jobs | {"rule": job(quarter, RULE)}, limit=300).wait()
    losses = {rate: final(runs[f"adamw_{rate:g}"]) for rate in RATES}
    best = min(RATES, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)
    jobs = {"adamw": job(whole, f"--blockwise=False --learning_rate={best:g}"), "rule": job(whole, RULE)}
    long_runs = Batch(place, "whole", jobs, limit=400).wait()
    report.check("science/adamw/best_rate", REPORTED, lambda: best)
    pairs = {"quarter": (runs[f"adamw_{best:g}"], runs["rule"]), "whole": (long_runs["adamw"], long_runs["rule"])}
    for budget, (adamw, rule) in pairs.items():
        learning_checks(report, f"science/{budget}/adamw", adamw)
        learning_checks(report, f"science/{budget}/rule", rule)
        difference = partial(lambda adamw, rule: final(rule) - final(adamw), adamw, rule)
        report.check(f"science/{budget}/rule_minus_adamw", REPORTED, difference)
