"""Compare ways to train ("arms") fairly: each at its own best learning rate, at equal budgets, over several seeds.

    python compare.py config/study_cpu.py --plan                  # what would run, and what it costs
    python compare.py config/study_cpu.py                         # run it; started again, it goes on
    python compare.py config/study_cpu.py --seeds=1,2,3,4,5 --out_dir=out/more_seeds

A study's file sets keys of train.py, which all runs share, and the keys of a study below. Every run is train.py in a
process of its own. Into out_dir go study.json, report.md and figures, and the runs themselves into out_dir/runs.
"""

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated

from blockwise import UserError, exit_on_user_error, warn
from blockwise.curves import SPIKE_DEVIATIONS, SPIKE_HEIGHT, SPIKE_ROWS, curve, read_rows, speedups, spikes
from blockwise.files import InUse, write_text
from blockwise.layer_warmup import layer_schedule
from blockwise.rundir import run_lock
from blockwise.settings import AUTO_MULT, TrainConfig
from blockwise.signals import StopRequest
from blockwise.study import around, needed, paired, sentence, spread, verdict
from configurator import configure

ROOT = Path(__file__).resolve().parent
FLAGS = {"plan": "print the runs and their cost, and exit; needs no data"}
TWICE = " (2x steps)"  # ends the name of the baseline's runs with twice the steps
# What may differ between two runs that compute the same; multipliers and floor are in the resolved config
NOT_IDENTITY = (
    "out_dir", "init_from", "wandb_log", "wandb_project", "wandb_run_name", "log_interval", "profile", "blockwise",
    "min_lr_ratio", "activation_checkpointing",
)  # fmt: skip
# What the arms of a comparison must have in common: the budget, and what their losses are measured on
COMMON = ("max_iters", "block_size", "dataset", "data_dir", "vocab_size", "eval_interval")
SET_BY_STUDY = ("--learning_rate=", "--seed=", "--init_from=", "--out_dir=")


@dataclass
class StudyConfig(TrainConfig):
    """The keys of a study, besides those of train.py."""

    arms: Annotated[dict[str, str], "name: words for train.py (files and --key=value) that make this way to train"] = field(default_factory=dict)
    baseline: Annotated[str, "the arm with which the others are compared"] = "adamw"
    learning_rates: Annotated[dict[str, list[float]], "arm: its first grid; one whose best lies at an end is extended"] = field(default_factory=dict)
    seeds: Annotated[list[int], "the first makes the sweep, all run at each arm's best learning rate"] = field(default_factory=lambda: [1, 2, 3])
    conditions: Annotated[dict[str, str], "name: words; the whole comparison is made under each (none: once)"] = field(default_factory=dict)
    floors: Annotated[dict[str, str], "likewise, for where learning rates end; they follow the arm's words (none: min_lr for all, and 0.05 learning_rate)"] = field(default_factory=dict)
    twice: Annotated[bool, "run the baseline with twice the steps too, and read the speedup from that"] = False
    extensions: Annotated[int, "learning rates by which a grid may grow"] = 6
    jobs: Annotated[int | None, "runs at a time (None: one a GPU; on a CPU one a core)"] = None
    processes: Annotated[int, "of each run; above 1, under torchrun"] = 1

    def __post_init__(self):
        super().__post_init__()
        for key in ("processes", "jobs"):
            self.check(key, getattr(self, key) is None or getattr(self, key) >= 1, "at least 1")
        self.check("extensions", self.extensions >= 0, "at least 0")
        self.check("max_iters", self.max_iters >= 1, "at least 1")
        self.check("init_from", self.init_from == "scratch", "scratch, from where all runs of a study start")
        self.check("eval_only", not self.eval_only, "False")
        if self.twice:
            often = 0 < self.eval_interval <= self.max_iters / 5
            self.check("eval_interval", often, f"1 to {self.max_iters // 5}, to read a speedup from the curves")
        divides = self.gradient_accumulation_steps % self.processes == 0
        self.check("gradient_accumulation_steps", divides, f"a multiple of processes={self.processes}")


@dataclass(frozen=True)
class Run:
    """One training run of a study: where it belongs, and the config that train.py gets."""

    condition: str
    arm: str
    rate: float
    seed: int
    config: TrainConfig = field(compare=False, repr=False)
    folder: Path = field(compare=False, repr=False)

    @property
    def label(self):
        where = f" ({self.condition})" if self.condition else ""
        return f"{self.arm} at {self.rate:g}, seed {self.seed}{where}"


class Study:
    """A study's plan and what is known of it: every run follows from the config and from the results so far."""

    def __init__(self, config):
        self.config = config
        self.folder = Path(config.out_dir)
        self.results = {}  # folder of a run -> its result; one that failed is tried again by the next call of compare.py
        check(config)
        floors = config.floors or {
            "absolute floor": f"--min_lr_ratio=None --min_lr={config.min_lr}",
            "relative floor": "--min_lr_ratio=0.05",
        }
        shared = TrainConfig(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})
        self.settings = {}  # (place, arm) -> TrainConfig
        self.places = []  # names of the comparisons: a condition with a floor each
        for (condition, before), (floor, behind) in product((config.conditions or {"": ""}).items(), floors.items()):
            place = ", ".join(filter(None, (condition, floor)))
            self.places.append(place)
            for arm, words in config.arms.items():
                words = f"{before} {words} {behind}"
                settings = self.settings[place, arm] = settings_of(words, shared, arm)
                if arm == config.baseline and config.twice:
                    doubled = {key: 2 * getattr(settings, key) for key in ("max_iters", "lr_decay_iters")}
                    self.settings[place, arm + TWICE] = replace(settings, **doubled)
            check_common({arm: self.settings[place, arm] for arm in config.arms})

    def run_of(self, place, arm, rate, seed):
        config = replace(self.settings[place, arm], learning_rate=rate, seed=seed, init_from="auto", wandb_run_name=arm)
        left_out = NOT_IDENTITY if config.lr_mult == "auto" else NOT_IDENTITY + AUTO_MULT
        identity = {k: v for k, v in asdict(config.resolved()).items() if k not in left_out}
        identity["data"] = fingerprint(config.data_dir, config.dataset)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        folder = self.folder / "runs" / f"lr{rate:g}-seed{seed}-{digest}"
        return Run(place, arm, rate, seed, replace(config, out_dir=str(folder)), folder)

    def arm(self, place, arm):
        """(runs that this arm needs so far, {(rate, seed): loss} of those that are done, its best rate or None).

        A run that failed has no loss: what it would have said is not known, and so nothing follows from it.
        """
        grid, best = self.config.learning_rates.get(arm), None
        if arm.endswith(TWICE):
            runs, _, best = self.arm(place, arm.removesuffix(TWICE))
            if best is None:
                return [], {}, None
            grid = around(best, {run.rate for run in runs})
        losses = {}
        while True:  # each result may ask for more runs, whose results may be there already
            pairs, best = needed(grid, self.config.seeds, losses, self.config.extensions)
            runs = [self.run_of(place, arm, rate, seed) for rate, seed in pairs]
            results = {(run.rate, run.seed): self.result(run) for run in runs}
            found = {key: loss_of(r) for key, r in results.items() if r and r["status"] != "failed"}
            if found.keys() == losses.keys():
                return runs, losses, best
            losses = found

    def result(self, run):
        """{"status": "finished" | "diverged" | "failed", "loss", "curve", "seconds", "spikes"}, or None: not done.

        spikes: None for a run of before they were counted.
        """
        path = run.folder / "result.json"
        if run.folder not in self.results and path.is_file():
            try:
                found = json.loads(path.read_text())
                if not isinstance(found["curve"], list) or (found["status"] == "finished" and found["loss"] * 0 != 0):
                    raise ValueError("not what a study writes")
                known = {key: found[key] for key in ("status", "loss", "curve", "seconds")}
                self.results[run.folder] = {**known, "spikes": found.get("spikes")}
            except (ValueError, KeyError, TypeError) as error:
                warn(f"{path} is broken ({error}): the run is made again")
                path.unlink()
        return self.results.get(run.folder)

    def runs(self):
        """Every run that is needed, as far as the results tell: more come when a best lies at an end, or is known."""
        every = [self.arm(place, arm)[0] for place, arm in self.settings]
        return list({run.folder: run for runs in every for run in runs}.values())

    def todo(self):
        return [run for run in self.runs() if not self.result(run)]

    def to_come(self):
        """Tokens of the runs that will be needed, if no grid grows any more, but cannot be named yet."""
        tokens = 0
        for (place, arm), settings in self.settings.items():
            runs, _, best = self.arm(place, arm)
            missing = 0 if best is not None else len(self.config.seeds) - 1
            missing += 3 if arm.endswith(TWICE) and not runs else 0
            tokens += missing * tokens_of(settings)
        return tokens


def check(config):
    """Raises UserError for a study that does not say what to compare."""
    for name in [*config.arms, *config.conditions, *config.floors]:
        if not re.fullmatch(r"\w[\w .,:+/-]{0,59}", name):
            raise UserError(f"the name {name!r}: expected up to 60 letters, digits, spaces and any of _ . , : + / -")
    if not config.arms:
        raise UserError("the study names no arms: expected arms = {NAME: WORDS, ...} in its file")
    if config.baseline not in config.arms:
        raise UserError(f"baseline={config.baseline}: no such arm; expected one of {', '.join(config.arms)}")
    for arm in config.learning_rates.keys() - config.arms.keys():
        raise UserError(f"learning_rates has an unknown arm {arm!r}: expected one of {', '.join(config.arms)}")
    for arm in config.arms:
        grid = config.learning_rates.get(arm, [])
        if not grid or any(rate <= 0 for rate in grid) or len(set(grid)) < len(grid):
            raise UserError(f"learning_rates.{arm}={grid}: expected at least one rate above 0, none twice")
    seeds = config.seeds
    config.check("seeds", seeds and len(set(seeds)) == len(seeds) and min(seeds) >= 0, "different numbers, at least 0")


def check_common(arms):
    """Raises UserError where arms of one comparison differ in budget or in what their losses are measured on."""
    shared = {key: {arm: getattr(settings, key) for arm, settings in arms.items()} for key in COMMON}
    shared["tokens a step"] = {arm: tokens_of(settings) // settings.max_iters for arm, settings in arms.items()}
    shared["windows of an evaluation"] = {arm: s.eval_iters * s.batch_size for arm, s in arms.items()}
    for key, values in shared.items():
        if len(set(values.values())) > 1:
            raise UserError(f"arms differ in {key}: {values}; expected the same for all")


def settings_of(words, shared, arm):
    """TrainConfig of an arm: the shared keys, then its words."""
    try:
        words = shlex.split(words)
    except ValueError as error:
        raise UserError(f"arm {arm!r}: {words}: {error}") from None
    check_words(words, f"arm {arm!r}: ")
    settings, _, _ = configure(TrainConfig, words, "", start=shared)
    layer_schedule(settings.resolved())  # a shape that does not divide is known before anything runs
    return settings


def check_words(words, where=""):
    for word in words:
        if word.startswith(SET_BY_STUDY) and (where or not word.startswith("--out_dir=")):
            raise UserError(f"{where}{word}: a study sets that itself; see learning_rates, seeds and out_dir")
        if where and word in ("--help", "-h"):
            raise UserError(f"{where}{word}: expected files and --key=value")


@cache
def fingerprint(data_dir, dataset):
    """What tells a data set's content: the hashes in its meta.json; None where there are none."""
    try:
        splits = json.loads((Path(data_dir) / dataset / "meta.json").read_text())["splits"]
        return {split: splits[split]["sha256"] for split in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tokens_of(config):
    return config.max_iters * config.gradient_accumulation_steps * config.batch_size * config.block_size


def loss_of(result):
    """What the sweep sees: a run that diverged is worse than any that did not."""
    return result["loss"] if result["status"] == "finished" else math.inf


# Running


def write_job(run):
    """The run's settings as a config file, from which it can be repeated by hand."""
    run.folder.mkdir(parents=True, exist_ok=True)
    default = TrainConfig()
    lines = [f"# python train.py {run.folder / 'job.py'}"]
    lines += [f"{key} = {value!r}" for key, value in asdict(run.config).items() if value != getattr(default, key)]
    (run.folder / "job.py").write_text("\n".join(lines) + "\n")


def command(run, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(ROOT / "train.py"), str(run.folder / "job.py")]


def slots(config):
    """Environments of the runs that go side by side: each has its share of the GPUs or of the cores."""
    import torch

    if config.device.startswith("cuda:") or config.device == "mps":
        return [{}] * (config.jobs or 1)
    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        groups = [visible[i : i + config.processes] for i in range(0, gpus - config.processes + 1, config.processes)]
        config.check("processes", groups, f"at most the {gpus} GPUs")
        jobs = config.jobs or len(groups)
        return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])} for i in range(jobs)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = config.jobs or max(cores // config.processes, 1)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(cores // (jobs * config.processes), 1)))
    return [{"OMP_NUM_THREADS": threads}] * jobs


def start(run, processes, slot):
    """train.py on the run's job file; what it prints goes to log.txt in the run's folder."""
    write_job(run)
    environment = {**os.environ, **slot, "LAUNCHED_BY": str(os.getpid())}  # the run ends by itself when we are killed
    if processes == 1:
        environment["RANK"] = "0"  # as under a launcher: it then notices at once
    with open(run.folder / "log.txt", "w") as log:
        words = command(run, processes)
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)


def busy(run):
    """Whether a process that an earlier call left behind still trains this run."""
    lock = run_lock(run.folder)
    try:
        lock.acquire()
        lock.release()
    except InUse:
        return True
    return False


def outcome(run, status, seconds):
    """The result of a run that ended with this exit status, by its metrics.jsonl."""
    try:
        rows = read_rows(run.folder)
    except (OSError, ValueError):
        rows = []
    last = rows[-1] if rows else {}
    val = curve(rows, "val/loss")
    result = {"status": "failed", "loss": None, "curve": val, "seconds": seconds, "spikes": spikes(rows)}
    if last.get("step") == run.config.max_iters and "val/loss" in last:
        # a run that ends well above where it began has only blown up
        kept = math.isfinite(float(last["val/loss"])) and val[-1][1] <= val[0][1] + 0.1
        result |= {"status": "finished", "loss": val[-1][1]} if kept else {"status": "diverged"}
    elif status and not all(math.isfinite(float(last.get(key, 0))) for key in ("train/loss", "grad_norm")):
        result["status"] = "diverged"
    return result


def check_machine(study):
    """Raises UserError for a device that is not there, a data set that is missing or broken, before anything runs."""
    from blockwise.distributed import auto_device, find_device
    from blockwise.loader import Dataset

    find_device(auto_device(study.config.device))
    for kind in dict.fromkeys((c.data_dir, c.dataset, c.block_size, c.vocab_size) for c in study.settings.values()):
        Dataset.open(*kind).verify()


def run_all(study, stop):
    """Run what is needed until nothing is. Ends early, with the runs saved, once `stop` is true."""
    processes, free = study.config.processes, slots(study.config)
    running = {}  # Run -> (process, its slot, when it started)
    done = [run for run in study.runs() if study.result(run)]
    for run in done:
        discard_weights(run)  # of a call that was killed between a result and this
    speeds = [tokens_of(run.config) / study.result(run)["seconds"] for run in done if study.result(run)["seconds"]]
    side_by_side, waiting, todo = len(free), set(), study.todo()
    while (todo or running) and not stop:
        for run in todo:
            if not free or run in running:
                continue
            if busy(run):
                if run not in waiting:
                    print(f"{run.label}: waiting for the process of an earlier call that trains it", flush=True)
                waiting.add(run)
                continue
            fresh, slot = not (run.folder / "metrics.jsonl").exists(), free.pop()
            running[run] = start(run, processes, slot), slot, time.monotonic() if fresh else None
        time.sleep(0.2)
        for run in [run for run, (process, _, _) in running.items() if process.poll() is not None]:
            process, slot, began = running.pop(run)
            free.append(slot)
            result = outcome(run, process.returncode, began and time.monotonic() - began)
            study.results[run.folder] = result
            if result["status"] != "failed":
                write_text(run.folder / "result.json", json.dumps(result))
                discard_weights(run)
                speeds += [tokens_of(run.config) / result["seconds"]] if began else []
            todo = study.todo()
            said = told(run, result, process.returncode)
            print(f"{run.label}: {said}; {left(study, speeds, side_by_side)}", flush=True)
    for process, _, _ in running.values():
        process.terminate()  # train.py saves and ends
    for process, _, _ in running.values():
        process.wait()


def discard_weights(run):
    """The weights of a run that is done have served their purpose, unless all were to be kept."""
    if run.config.keep_checkpoints != -1:
        for path in [*run.folder.glob("ckpt_*.json"), *run.folder.glob("ckpt_*")]:
            path.unlink(missing_ok=True)


def told(run, result, status):
    if result["status"] == "failed":
        lines = (run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"failed, {how}: {lines[-1] if lines else 'it said nothing'} (see {run.folder / 'log.txt'})"
    loss = f"{result['loss']:.4f}" if result["status"] == "finished" else "diverged"
    return loss + (f" in {result['seconds']:.0f} s" if result["seconds"] else "")


def left(study, speeds, side_by_side):
    """How many runs are done, and how long the rest will take if no grid grows any more."""
    runs, todo = study.runs(), study.todo()
    tokens = sum(tokens_of(run.config) for run in todo) + study.to_come()
    minutes = f"about {tokens / (median(speeds) * side_by_side) / 60:.0f} min left" if speeds else "time left not known"
    return f"{len(runs) - len(todo)} of {len(runs)} known runs done, {minutes}"


# Reporting


def print_plan(study):
    config, runs = study.config, study.runs()
    for place in study.places:
        print(place)
        for arm in config.arms:
            rates = [study.run_of(place, arm, rate, config.seeds[0]) for rate in sorted(config.learning_rates[arm])]
            rates = ", ".join(f"{run.rate:g} (to {floor_of(run)})" for run in rates)
            print(f"  {arm + ':':<20} learning rate (to its floor) {rates}")
    todo = sum(tokens_of(run.config) for run in study.todo()) + study.to_come()
    tokens = todo + sum(tokens_of(run.config) for run in runs if study.result(run))
    single = sorted({tokens_of(settings) for (_, arm), settings in study.settings.items() if not arm.endswith(TWICE)})
    twice = f"; {config.baseline} again with twice the steps" if config.twice else ""
    print(f"a run: {' or '.join(f'{n:,}' for n in single)} tokens; {len(config.seeds)} seeds at each arm's best{twice}")
    print(f"at least {tokens:,} tokens in all; a grid whose best lies at an end {extended(config)}")
    timed = [(tokens_of(run.config), study.result(run)["seconds"]) for run in runs if study.result(run)]
    speeds = [tokens / seconds for tokens, seconds in timed if seconds]
    if speeds:
        hours = todo / median(speeds) / 3600
        print(f"{len(timed)} runs are done; the rest: {hours:.1f} h, divided by the number of runs side by side")
    else:
        print("time: known once the first run is done (--max_iters=50 --out_dir=out/try gives a quick idea)")


def extended(config):
    return f"is extended, by up to {config.extensions} rates" if config.extensions else "is left as it is"


def floor_of(run):
    floor = run.config.resolved().min_lr
    return f"{floor:g}" + (", above it" if floor > run.rate else "")


def summary(study):
    """Everything that study.json states: of each comparison and arm the sweep, the best, the seeds, the test."""
    config = study.config
    places = {place: summary_of(study, place) for place in study.places}
    others = [arm for arm in config.arms if arm != config.baseline]
    tests = {arm: [arms[arm]["test"] for arms in places.values()] for arm in others}
    verdicts = [verdict(arm, config.baseline, tests[arm]) for arm in others]
    ends = [f"{arm} ({place})" for place, arms in places.items() for arm, one in arms.items() if one["at_an_end"]]
    if ends:
        verdicts.append(f"The best learning rate lies at an end of its grid, so it may be undertuned: {', '.join(ends)}.")
    single = [arm for arm in config.arms if all(len(arms[arm]["sweep"]) == 1 for arms in places.values())]
    if single:
        verdicts.append(f"Not tuned, run at one learning rate only: {', '.join(single)}.")
    results = {run: study.result(run) or {"status": "not run"} for run in study.runs()}
    return {
        "verdicts": verdicts,
        "places": places,
        "runs": [
            {"run": run.label, "folder": str(run.folder), "floor": run.config.resolved().min_lr}
            | {key: result.get(key) for key in ("status", "loss", "seconds", "spikes")}
            for run, result in results.items()
        ],
        "study": asdict(config),
        "commits": sorted({commit for run in results if (commit := commit_of(run))}),
    }


def summary_of(study, place):
    """{arm: what is known of it in this comparison}"""
    config, arms, losses = study.config, {}, {}
    for arm in [a for p, a in study.settings if p == place]:
        runs, known, best = study.arm(place, arm)
        at_best = [run for run in runs if run.rate == best]
        swept = sorted((run for run in runs if run.seed == config.seeds[0]), key=lambda run: run.rate)
        complete = best is not None and all((run.rate, run.seed) in known for run in at_best)
        losses[arm] = {run.seed: known[run.rate, run.seed] for run in at_best} if complete else None
        mean, deviation = spread(losses[arm] or {})
        arms[arm] = {
            "role": "baseline" if arm == config.baseline else "twice" if arm.endswith(TWICE) else "arm",
            "sweep": [sweep_point(run, study.result(run)) for run in swept],
            "best": best, "at_an_end": best is not None and best in (swept[0].rate, swept[-1].rate) and len(swept) > 1,
            "losses": {seed: loss if math.isfinite(loss) else None for seed, loss in (losses[arm] or {}).items()},
            "mean": mean, "deviation": deviation,
            "spikes": {run.seed: study.result(run)["spikes"] for run in at_best if (run.rate, run.seed) in known},
            "curves": {run.seed: study.result(run)["curve"] for run in at_best if math.isfinite(known.get((run.rate, run.seed), math.inf))},
        }  # fmt: skip
    twice = arms.get(config.baseline + TWICE, {"curves": {}})["curves"]
    for arm in config.arms:
        if arm != config.baseline:
            both = losses[arm] and losses[config.baseline]
            arms[arm]["test"] = paired(losses[arm], losses[config.baseline]) if both else None
            arms[arm]["speedup"] = speedups(arms[arm]["curves"], twice)
    return arms


def sweep_point(run, result):
    result = result or {"status": "not run", "loss": None, "spikes": None}
    floor = run.config.resolved().min_lr
    return {"learning_rate": run.rate, "floor": floor} | {key: result[key] for key in ("status", "loss", "spikes")}


def commit_of(run):
    """The project's commit with which a run was made, by its config.json."""
    try:
        return json.loads((run.folder / "config.json").read_text())["commit"]
    except (OSError, ValueError, KeyError):
        return None


def report(study, found):
    """report.md: the verdict first, then each comparison, then every run that did not end well."""
    config = study.config
    tokens = sorted({tokens_of(study.settings[place, config.baseline]) for place in study.places})
    lines = [f"# {study.folder.name}", "", *[f"**{line}**\n" for line in found["verdicts"]]]
    lines += [
        f"Final validation loss, in nats per token, of runs of {' or '.join(f'{n:,}' for n in tokens)} tokens. An arm's "
        f"learning rate (that of Norm) is the best of its own sweep, made with seed {config.seeds[0]} and judged by the "
        f"same validation windows as the result; a grid whose best lies at an end {extended(config)}. The floor is what "
        f"the rate falls to. Gap: arm minus {config.baseline}, so below zero the arm is better; mean, interval and p are "
        f"of the paired differences over seeds {', '.join(map(str, config.seeds))}. With several comparisons, one in twenty "
        "intervals misses by chance.",
        "",
        f"Spikes, one number a seed: how often the training loss stood more than {SPIKE_HEIGHT} nats, and more than "
        f"{SPIKE_DEVIATIONS} standard deviations, above the median of the {SPIKE_ROWS} logged steps before it; steps in a "
        "row are one spike.",
        "",
    ]
    for place, arms in found["places"].items():
        heads = ["arm", "best learning rate", "floor", "mean loss", "deviation", "spikes"]
        heads += ["gap", "95 % interval", "p", "speedup"]
        lines += [f"## {place}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [table_row(arm, one) for arm, one in arms.items()]
        lines += ["", *[f"{sentence(a, config.baseline, one['test'])}.\n" for a, one in arms.items() if "test" in one]]
        lines += [f"Learning rate (its floor): loss, with seed {config.seeds[0]}", ""]
        lines += [f"- {arm}: {'; '.join(map(point, one['sweep']))}" for arm, one in arms.items()]
        lines += [""]
    lines += ["![loss against learning rate](learning_rates.png)", "", "![validation loss](curves.png)", ""]
    bad = [run for run in found["runs"] if run["status"] != "finished"]
    lines += ["## Runs that diverged or failed", ""]
    lines += [f"- {run['run']}: {run['status']}" for run in bad] or ["None."]
    arms = [f"{arm} (`{words.strip()}`)" if words.strip() else arm for arm, words in config.arms.items()]
    lines += ["", f"Arms: {', '.join(arms)}. Runs made by commit {', '.join(found['commits']) or 'unknown'}."]
    lines += ["Every key is in study.json; out_dir/runs has each run, with the job.py that repeats it.", ""]
    return "\n".join(lines)


def point(p):
    return f"{p['learning_rate']:g} ({p['floor']:g}): {p['status'] if p['loss'] is None else shown(p['loss'])}"


def table_row(arm, one):
    test, speed = one.get("test"), one.get("speedup")
    cells = [arm, "-" if one["best"] is None else f"{one['best']:g}" + (" (at an end)" if one["at_an_end"] else "")]
    floor = next((p["floor"] for p in one["sweep"] if p["learning_rate"] == one["best"]), None)
    lost = sum(loss is None for loss in one["losses"].values())
    cells += ["-" if floor is None else f"{floor:g}", shown(one["mean"]) + (f" ({lost} diverged)" if lost else "")]
    cells += [shown(one["deviation"]), ", ".join("-" if n is None else str(n) for n in one["spikes"].values())]
    if test is None:
        cells += ["", "", ""]
    else:
        interval = "-" if test["low"] is None else f"{test['low']:+.4f} to {test['high']:+.4f}"
        cells += [shown(test["gap"], "+"), interval, "-" if test["p"] is None else f"{test['p']:.2g}"]
    return f"| {' | '.join([*cells, shown_speedup(speed) if one['role'] == 'arm' else ''])} |"


def shown_speedup(speed):
    if speed is None:
        return "not measured"
    seeds = "none of single seeds" if speed["low"] is None else f"{speed['low']:.2f} to {speed['high']:.2f}"
    return f"{speed['ratio']:.2f}x ({seeds}" + (f", {speed['unread']} unread)" if speed["unread"] else ")")


def shown(number, sign=""):
    return "-" if number is None else f"{number:{sign}.4f}"


def write(study):
    """study.json, report.md and the figures; returns the summary."""
    found = summary(study)
    write_text(study.folder / "study.json", json.dumps(found, indent=1))
    write_text(study.folder / "report.md", report(study, found))
    drawn = subprocess.run([sys.executable, str(ROOT / "plot.py"), "study", str(study.folder)])
    if drawn.returncode:
        warn(f"the figures were not drawn: python plot.py study {study.folder}")
    return found


def main(argv):
    check_words(argv)
    config, _, flags = configure(StudyConfig, argv, __doc__, FLAGS)
    study = Study(config)
    if "plan" in flags:
        print_plan(study)
        return 0
    lock = run_lock(config.out_dir)
    lock.acquire()
    stop = StopRequest()
    check_machine(study)
    print_plan(study)
    run_all(study, stop)
    if stop:
        print(f"stopped by {stop.signal}; the same command goes on")
        return 0
    found = write(study)
    print(f"wrote {study.folder / 'report.md'}", *found["verdicts"], sep="\n")
    return 1 if any(run["status"] == "failed" for run in found["runs"]) else 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
