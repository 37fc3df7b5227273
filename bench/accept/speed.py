"""The phase speed: train.py against its own micro-steps, steps against nanoGPT's form and Hugging Face's LLaMA."""

import importlib.util
import json
import os
import time
from functools import partial
from statistics import median
from unittest.mock import patch

from sides import PEERS, SHAPES, Shape, Side

from accept.fit import words
from accept.report import ABOVE_ZERO, REPORTED, Skip, at_least, at_most, equal
from accept.runs import Batch, Job
from blockwise import UserError

TINY_SHAPE = (1, 2, 32, 32, 64)  # SHAPES without the batch
# By batch size; compiling takes a minute each, and two sides of 48 in eager mode beside two compiled more than a card
MODES = {12: ("", " compiled"), 24: ("",), 48: (" compiled",)}
BOUNDS = {"nanogpt": {"": 0.97, " compiled": 1.0}, "hugging face": {"": 1.2, " compiled": 1.0}}
MFU = 0.36  # of GPT-2 at batch 12, where PyTorch is known to reach 0.36 to 0.42
PAGE = 1024  # bytes: less is a number that is read, not a batch


def checks(report, place):
    report.section("speed/train", train_checks, place)
    for model, peer in PEERS.items():
        report.section(f"speed/{peer.replace(' ', '_')}", side_checks, place, model, peer)


def train_checks(report, place):
    steps = 11 if place.tiny else 16
    keys = ("--compile=True", f"--max_iters={steps}", "--log_interval=5", "--dropout=0")
    micro_steps = {"few": 4, "many": 8 if place.tiny else 40}
    jobs = {name: Job(words(place, *keys, f"--gradient_accumulation_steps={n}")) for name, n in micro_steps.items()}
    traced = ("--gradient_accumulation_steps=4", "--max_iters=9", "--log_interval=1", "--profile=True")
    runs = Batch(place, "train", jobs | {"trace": Job(words(place, *keys, *traced))}, limit=300).wait()

    def ms(name):
        return median(value for step, value in runs[name].column("step_ms").items() if step >= 5)

    def micro_ms():
        return (ms("many") - ms("few")) / (micro_steps["many"] - micro_steps["few"])

    def step_over_micro_steps():
        return ms("many") / (micro_steps["many"] * micro_ms())

    def mfu():
        rates = [row["mfu"] for step, row in runs["many"].rows.items() if step >= 5 and row.get("mfu")]
        if not rates:
            raise Skip("this device's peak rate is not known")
        return median(rates)

    def pageable(large):
        events = json.loads((runs["trace"].done.out_dir / "trace.json").read_text())["traceEvents"]
        copies = [event for event in events if event.get("cat") == "gpu_memcpy"]
        if not copies:
            raise RuntimeError("the trace has no copies at all")
        sizes = [event["args"]["bytes"] for event in copies if "pageable" in event["name"].lower()]
        return sum((size >= PAGE) == large for size in sizes)

    report.check("speed/train/micro_step_ms", REPORTED, micro_ms)
    limit = REPORTED if place.tiny else at_most(1.03)
    report.check("speed/train/step_over_micro_steps", limit, step_over_micro_steps)
    report.check("speed/train/mfu", at_least(MFU), mfu, place.no_cuda("a CPU's peak rate is not known"))
    lacks = place.no_cuda("without a GPU nothing is copied")
    report.check("speed/train/pageable_copies", equal(0), partial(pageable, True), lacks)
    report.check("speed/train/pageable_copies_below_1_kB", REPORTED, partial(pageable, False), lacks)


def side_checks(report, place, model, peer):
    """Ours against a peer at each batch size and in each mode, in turns."""
    for batch, modes in list(MODES.items())[: 1 if place.tiny else None]:
        for mode in modes:
            label = f"speed/{peer.replace(' ', '_')}/{batch}/{mode.strip() or 'eager'}"
            limit = ABOVE_ZERO if place.tiny else at_least(BOUNDS[peer][mode])
            if peer == "hugging face" and not importlib.util.find_spec("transformers"):
                report.check(label, limit, None, "transformers is not installed")
                continue
            times, peaks = take_turns(place, model, batch, [f"ours{mode}", f"{peer}{mode}"])
            lacks = "" if peaks[1] else "the peer ran out of memory or time"
            report.check(f"{label}/times_as_fast", limit, partial(ratio, times), lacks)
            report.check(f"{label}/ms", REPORTED, lambda times=times: 1000 * median(times[0]))
            if peer == "nanogpt":
                lacks = place.no_cuda("a CPU's peak is that of the whole process") or lacks
                report.check(f"{label}/memory", at_most(1.05), lambda peaks=peaks: peaks[0] / peaks[1], lacks)


def take_turns(place, model, batch, names):
    """([seconds of a step, one a round], ...), (peak MB, ...) of these sides; of one that ended, [] and 0."""
    device = "cuda" if place.cuda else "cpu"
    size = (*TINY_SHAPE, batch // 12) if place.tiny else (*SHAPES["cuda"][model][:-1], batch)
    env = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"} if place.tiny else {}
    end = time.monotonic() + place.time_left(150)
    with patch.dict(os.environ, env | place.this_device):
        sides = [Side(name, Shape(model, *size), device, end=end) for name in names]
    living = [side for side in sides if works(side.answer)]  # after steps that do not count
    for _ in range(2 if place.tiny else 9):
        living = [side for side in living if works(side.measure)]
    peaks = [side.close() if side in living else 0 for side in sides]
    return [side.times if side in living else [] for side in sides], peaks


def works(action):
    try:
        action()
    except (UserError, OSError):
        return False
    return True


def ratio(times):
    return median(b / a for a, b in zip(*times, strict=True))
