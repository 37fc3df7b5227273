"""The phase speed: steps against nanoGPT's form and Hugging Face's LLaMA, train.py against its own micro-steps."""

import importlib.util
import json
import subprocess
import sys
from functools import partial
from statistics import median

from throughput import PEERS, SHAPES

from accept.fit import words
from accept.report import ABOVE_ZERO, REPORTED, Skip, at_least, at_most, equal
from accept.runs import ROOT, Batch, Job, start

NAMES = ("layers", "heads", "width", "block", "vocab")
TINY_SHAPE = (1, 2, 32, 32, 64)
BATCHES = {True: (1, 2, 4), False: (12, 24, 48)}  # by tiny
BOUNDS = {"nanogpt": {"": 0.97, " compiled": 1.0}, "hugging face": {"": 1.2, " compiled": 1.0}}
FLASH = ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
PAGE = 1024  # bytes: less is a number that is read, not a batch


class Process:
    """A side that answers commands, in a process of its own."""

    def __init__(self, place, model, name):
        shape = TINY_SHAPE if place.tiny else SHAPES["cuda"][model]
        args = dict(zip(NAMES, shape, strict=False)) | {"model": model, "device": place.device, "peer_path": None}
        args |= {"side": name.removesuffix(" compiled"), "compile": name.endswith(" compiled")}
        command = [sys.executable, str(ROOT / "bench/accept/sides.py"), json.dumps(args)]
        self.name, self.errors = name, place.scratch / f"side_{model}_{name.replace(' ', '_')}"
        with open(self.errors, "w") as errors:
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            self.process = start(command, threads=1 if place.tiny else 4, **streams)

    def ask(self, **command):
        print(json.dumps(command), file=self.process.stdin, flush=True)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            last = self.errors.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise RuntimeError(f"{self.name}: its process ended: {last[-1]}")
        return json.loads(line)

    def close(self):
        self.process.kill()
        self.process.communicate()


def checks(report, place):
    found = {}
    for model, peer in PEERS.items():
        report.section(f"speed/{peer.replace(' ', '_')}", side_checks, place, model, peer, found)
    report.section("speed/train", train_checks, place, found)


def side_checks(report, place, model, peer, found):
    """Ours against a peer at each batch size; into `found` goes the time of our compiled micro-step."""
    label, missing = peer.replace(" ", "_"), peer == "hugging face" and not importlib.util.find_spec("transformers")
    if missing:
        report.check(f"speed/{label}", at_least(1), partial(skip, "transformers is not installed"))
        return
    names = [f"{side}{mode}" for side in ("ours", peer) for mode in ("", " compiled")]
    sides = {}
    try:
        for name in names:
            sides[name] = Process(place, model, name)
        for side in sides.values():
            side.answer()  # it is ready
        for batch in BATCHES[place.tiny]:
            warm, times = measure(place, sides, batch)
            batch_checks(report, place, f"speed/{label}/{batch}", peer, warm, times)
            if model == "gpt2" and batch == BATCHES[place.tiny][0]:
                sides["ours compiled"].ask(do="micro", batch=batch, least=0.1 if place.tiny else 2.0)
                found["micro"] = sides["ours compiled"].answer()["seconds"]
                attention_check(report, place, sides["ours"])
    finally:
        for side in sides.values():
            side.close()


def skip(reason):
    raise Skip(reason)


def measure(place, sides, batch):
    """({side: answer to "warm"}, {side: [seconds of a step, one a round]}); a side without memory has no times."""
    warm = {}
    for mode in ("", " compiled"):
        now = [side for name, side in sides.items() if name.endswith(" compiled") == bool(mode)]
        for together in [now] if mode else [[side] for side in now]:  # two compilers work at once
            for side in together:
                side.ask(do="warm", batch=batch)
            warm |= {side.name: side.answer() for side in together}
    times = {name: [] for name, answer in warm.items() if "error" not in answer}
    for _ in range(1 if place.tiny else 5):
        for name in list(times):
            sides[name].ask(do="time", batch=batch, least=0.05 if place.tiny else 0.7)
            answer = sides[name].answer()
            if "error" in answer:
                del times[name]
            else:
                times[name].append(answer["seconds"])
    return warm, times


def batch_checks(report, place, label, peer, warm, times):
    def ratio(mode):
        mine, theirs = times.get(f"ours{mode}"), times.get(f"{peer}{mode}")
        if not theirs:
            raise Skip(f"{peer} runs out of memory")
        if not mine:
            raise RuntimeError("ours runs out of memory")
        return median(b / a for a, b in zip(mine, theirs, strict=True))

    def memory(mode):
        place.needs_cuda("a CPU's peak is that of the whole process")
        if not times.get(f"{peer}{mode}"):
            raise Skip(f"{peer} runs out of memory")
        return warm[f"ours{mode}"]["peak_mb"] / warm[f"{peer}{mode}"]["peak_mb"]

    for mode, bound in BOUNDS[peer].items():
        name = f"{label}/{mode.strip() or 'eager'}"
        limit = ABOVE_ZERO if place.tiny else at_least(bound)
        report.check(f"{name}/times_as_fast", limit, partial(ratio, mode))
        report.check(f"{name}/ms", REPORTED, partial(lambda m: 1000 * median(times[f"ours{m}"]), mode))
        if peer == "nanogpt":
            report.check(f"{name}/memory", at_most(1.05), partial(memory, mode))


def attention_check(report, place, side):
    """How many times as fast eager steps are with cuDNN's attention first as without it: for the record."""

    def ratio():
        place.needs_cuda("cuDNN's attention needs a GPU")
        seconds = []
        for kernels in (FLASH, ["CUDNN_ATTENTION", *FLASH]):
            side.ask(do="time", attention=kernels)
            seconds.append(side.answer()["seconds"])
        return seconds[0] / seconds[1]

    report.check("speed/cudnn_attention/times_as_fast", REPORTED, ratio)


def train_checks(report, place, found):
    micro_steps, steps = (4, 11) if place.tiny else (40, 16)
    keys = [f"--gradient_accumulation_steps={micro_steps}", f"--max_iters={steps}", "--log_interval=5", "--dropout=0"]
    traced = [*keys, "--gradient_accumulation_steps=4", "--max_iters=9", "--log_interval=1", "--profile=True"]
    jobs = {"step": Job(words(place, "--compile=True", *keys)), "trace": Job(words(place, "--compile=True", *traced))}
    runs = Batch(place, "train", jobs, limit=300).wait()

    def step_over_micro_steps():
        rows = {step: ms for step, ms in runs["step"].column("step_ms").items() if step >= 5}
        return median(rows.values()) / (1000 * micro_steps * found["micro"])

    def mfu():
        place.needs_cuda("a CPU's peak rate is not known")
        known = [row["mfu"] for step, row in runs["step"].rows.items() if step >= 5 and row.get("mfu")]
        if not known:
            raise Skip("this device's peak rate is not known")
        return median(known)

    def pageable(large):
        place.needs_cuda("without a GPU nothing is copied")
        events = json.loads((runs["trace"].done.out_dir / "trace.json").read_text())["traceEvents"]
        copies = [event for event in events if event.get("cat") == "gpu_memcpy"]
        if not copies:
            raise RuntimeError("the trace has no copies at all")
        sizes = [event["args"]["bytes"] for event in copies if "pageable" in event["name"].lower()]
        return sum((size >= PAGE) == large for size in sizes)

    limit = ABOVE_ZERO if place.tiny else at_most(1.03)
    report.check("speed/train/step_over_micro_steps", limit, step_over_micro_steps)
    report.check("speed/train/mfu", ABOVE_ZERO if place.tiny else at_least(0.4), mfu)
    report.check("speed/train/pageable_copies", equal(0), partial(pageable, True))
    report.check("speed/train/pageable_copies_below_1_kB", REPORTED, partial(pageable, False))
