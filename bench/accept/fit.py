"""The phase fit: a run's memory against its estimate, the batch that it suggests, curvature, checkpoints."""

import math
import re
from functools import partial

from accept.correct import gap
from accept.report import ABOVE_ZERO, REPORTED, at_least, at_most, between, equal
from accept.runs import TINY, Batch, Job, run_one

GPT2 = (
    "--n_layer=12", "--n_head=12", "--n_embd=768", "--block_size=1024", "--batch_size=12", "--vocab_size=50304",
    "--dtype=bfloat16",
)  # fmt: skip
MODES = {"eager": "--compile=False", "compiled": "--compile=True"}
# Prints the seconds of what a save and a resume call
TIMED = """
import time, torch
import blockwise.checkpoint as checkpoint
from model import Transformer
def timed(function):
    def call(*args, **keys):
        began = time.perf_counter()
        result = function(*args, **keys)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        print(f"{function.__name__} took {time.perf_counter() - began} s")
        return result
    return call
for name in ("save_checkpoint", "newest_checkpoint", "load_checkpoint", "load_optimizer"):
    setattr(checkpoint, name, timed(getattr(checkpoint, name)))
Transformer.from_checkpoint = classmethod(timed(Transformer.from_checkpoint.__func__))
"""
LOADING = ("newest_checkpoint", "load_checkpoint", "load_optimizer", "from_checkpoint")


def checks(report, place):
    for section in (memory_checks, curvature_checks, checkpoint_checks):
        report.section(f"fit/{section.__name__}", section, place)


def words(place, *keys):
    """Keys of a short run of a GPT-2 of 124M parameters, of a tiny one where checks are."""
    shape = TINY if place.tiny else GPT2
    return (*place.common(4), *shape, f"--device={place.device}", "--eval_iters=1", *keys)


def memory_checks(report, place):
    """The dry run's estimate is of an eager step; compiled it takes less."""
    dry = run_one(place, "dry", (*words(place, MODES["eager"]), "--dry_run"))

    def estimate_over(peak):
        return number_in(dry, "memory of a process, estimated:") / peak()

    for mode, key in MODES.items():  # a process each: what one has held says nothing of the next
        run = run_one(place, f"memory_{mode}", words(place, key))
        peak = lambda run=run: max(run.column("mem_mb").values())  # noqa: E731
        limit = ABOVE_ZERO if place.tiny else between(0.9, 1.15) if mode == "eager" else at_least(0.95)
        report.check(f"fit/memory/{mode}/estimate_over_peak", limit, partial(estimate_over, peak))
        report.check(f"fit/memory/{mode}/peak_mb", REPORTED, peak)
    lacks = place.no_cuda("a CPU's memory has other users")
    for mode in MODES:
        trial = partial(largest_batch_status, place, mode, dry, 1.0)
        report.check(f"fit/batch/{mode}/suggested_status", equal(0), trial, lacks)
    trial = partial(largest_batch_status, place, "eager", dry, 1.3)
    report.check("fit/batch/eager/1.3_times_status", equal(2), trial, lacks)


def number_in(run, label):
    """The number that follows a label in what a run printed."""
    return float(re.search(rf"{label} ([\d,.]*\d)", run.done.text("stdout"))[1].replace(",", ""))


def largest_batch_status(place, mode, dry, times):
    """Exit status of a run with so many times the batch size that the dry run suggests."""
    size = math.ceil(times * number_in(dry, "largest batch_size:"))
    run = run_one(place, f"batch_{mode}_{size}", words(place, MODES[mode], f"--batch_size={size}", "--max_iters=2"))
    status = run.result["status"]
    if status == 2 and "out of memory" not in run.error:
        raise RuntimeError(run.error)
    return status


def curvature_checks(report, place):
    """The same eigenvalue whatever the micro-batch, and nearly with TF32; what each takes."""
    keys = ("--compile=False", "--deterministic=True", "--curvature_interval=1", "--curvature_batch_size=4")
    keys += (f"--max_iters={2 if place.tiny else 3}",)  # the first step has no preconditioner yet
    ways = {f"micro_{size}": (size, "highest") for size in (4, 2, 1)} | {"micro_2_high": (2, "high")}
    jobs = {}
    for name, (micro, precision) in ways.items():
        way = (f"--curvature_micro_batch={micro}", f"--curvature_precision={precision}")
        jobs[name] = Job(words(place, *keys, *way))
    jobs["by_estimate"] = Job(words(place, "--compile=False", "--curvature_interval=1", "--max_iters=2"))
    runs = Batch(place, "curvature", jobs).wait()
    for name in list(ways)[1:]:
        limit = at_most(1e-2 if name.endswith("high") else 1e-3)
        pair = runs[name], runs["micro_4"], ["curvature/lambda_max"]
        report.check(f"fit/curvature/{name}/against_micro_4", limit, partial(gap, *pair, relative=True))
    for name in jobs:
        report.check(f"fit/curvature/{name}/ms", REPORTED, partial(runs[name].last, "curvature/ms"))
        report.check(f"fit/curvature/{name}/mem_mb", REPORTED, partial(runs[name].last, "mem_mb"))


def checkpoint_checks(report, place):
    keys = ("--compile=False", "--keep_checkpoints=2")
    jobs = {
        "save": Job(words(place, *keys, "--max_iters=2"), out="saved"),
        "load": Job(words(place, *keys, "--init_from=resume"), out="saved"),
    }
    runs = Batch(place, "checkpoints", jobs, before=TIMED).wait()

    def seconds(run, *functions):
        printed = runs[run].done.text("stdout")
        times = {name: re.findall(rf"^{name} took ([\d.e-]+) s$", printed, re.MULTILINE) for name in functions}
        if missing := [name for name, found in times.items() if not found]:
            raise RuntimeError(f"{', '.join(missing)} was not called")
        return sum(float(found[0]) for found in times.values())

    report.check("fit/checkpoint/save_seconds", at_most(5), partial(seconds, "save", "save_checkpoint"))
    report.check("fit/checkpoint/load_seconds", at_most(5), partial(seconds, "load", *LOADING))
