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
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import Annotated

from blockwise import UserError, exit_on_user_error
from blockwise.curves import curve, read_rows, speedups
from blockwise.rundir import Lock, commit
from blockwise.settings import TrainConfig
from blockwise.signals import StopRequest
from blockwise.study import around, needed, paired, sentence, spread, verdict
from configurator import configure

ROOT = Path(__file__).resolve().parent
FLAGS = {"plan": "print the runs and their cost, and exit; needs no data"}
TWICE = " (2x steps)"  # ends the name of the baseline's runs with twice the steps
# A floor that is one number for all runs, and one in proportion: base rates of arms may lie 32-fold apart
FLOORS = {"absolute floor": "--min_lr_ratio=None", "relative floor": "--min_lr_ratio=0.05"}
# What may differ between two runs that compute the same
NOT_IDENTITY = ("out_dir", "init_from", "wandb_log", "wandb_project", "wandb_run_name", "log_interval", "profile")


@dataclass
class StudyConfig(TrainConfig):
    """The keys of a study, besides those of train.py."""

    arms: Annotated[dict[str, str], "name: words for train.py (files and --key=value) that make this way to train"] = field(default_factory=dict)
    baseline: Annotated[str, "the arm with which the others are compared"] = "adamw"
    learning_rates: Annotated[dict[str, list[float]], "arm: its first grid; one whose best lies at an end is extended"] = field(default_factory=dict)
    seeds: Annotated[list[int], "the first makes the sweep, all run at each arm's best learning rate"] = field(default_factory=lambda: [1, 2, 3])
    conditions: Annotated[dict[str, str], "name: words; the whole comparison is made under each (none: once)"] = field(default_factory=dict)
    floors: Annotated[dict[str, str], "likewise, for where learning rates end (none: both at min_lr and at 0.05 learning_rate)"] = field(default_factory=dict)
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
        self.places = [
            (", ".join(filter(None, (condition, floor))), f"{more} {words}")
            for condition, more in (config.conditions or {"": ""}).items()
            for floor, words in (config.floors or FLOORS).items()
        ]
        shared = TrainConfig(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})
        self.settings = {}  # (place, arm) -> TrainConfig
        for place, words in self.places:
            for arm, more in config.arms.items():
                settings = settings_of(f"{words} {more}", shared, arm)
                self.settings[place, arm] = settings
                if arm == config.baseline and config.twice:
                    doubled = {key: 2 * getattr(settings, key) for key in ("max_iters", "lr_decay_iters")}
                    self.settings[place, arm + TWICE] = replace(settings, **doubled)
            budgets = {arm: tokens_of(self.settings[place, arm]) for arm in config.arms}
            if len(set(budgets.values())) > 1:
                raise UserError(f"arms with unequal budgets in tokens: {budgets}; expected the same for all")

    def run_of(self, place, arm, rate, seed):
        config = replace(self.settings[place, arm], learning_rate=rate, seed=seed, init_from="auto", wandb_run_name=arm)
        identity = {k: v for k, v in asdict(config.resolved()).items() if k not in NOT_IDENTITY}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in arm)
        folder = self.folder / "runs" / f"{name}-lr{rate:g}-seed{seed}-{digest}"
        return Run(place, arm, rate, seed, replace(config, out_dir=str(folder)), folder)

    def arm(self, place, arm):
        """(runs that this arm needs so far, {(rate, seed): loss} of those that are done, its best rate or None)."""
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
            found = {(run.rate, run.seed): loss_of(self.result(run)) for run in runs if self.result(run)}
            if found.keys() == losses.keys():
                return runs, losses, best
            losses = found

    def result(self, run):
        """{"status": "finished" | "diverged" | "failed", "loss", "curve", "seconds"}, or None if it is not done."""
        if run.folder not in self.results and (run.folder / "result.json").is_file():
            self.results[run.folder] = json.loads((run.folder / "result.json").read_text())
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


def settings_of(words, shared, arm):
    """TrainConfig of an arm: the shared keys, then its words."""
    try:
        words = shlex.split(words)
    except ValueError as error:
        raise UserError(f"arm {arm!r}: {words}: {error}") from None
    settings, given, _ = configure(TrainConfig, words, "", start=shared)
    for key in sorted(given & {"learning_rate", "seed", "init_from"}):
        raise UserError(f"arm {arm!r} sets {key}: the study sets that itself")
    settings.resolved()  # a shape that does not divide is known before anything runs
    return settings


def tokens_of(config):
    return config.max_iters * config.gradient_accumulation_steps * config.batch_size * config.block_size


def loss_of(result):
    """What the sweep sees: a run that diverged, or failed, is worse than any that did not."""
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

    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        groups = [visible[i : i + config.processes] for i in range(0, gpus - config.processes + 1, config.processes)]
        config.check("processes", groups, f"at most the {gpus} GPUs")
        jobs = config.jobs or len(groups)
        return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])} for i in range(jobs)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = config.jobs or max(cores // config.processes, 1)
    return [{"OMP_NUM_THREADS": str(max(cores // (jobs * config.processes), 1))}] * jobs


def start(run, processes, slot):
    """train.py on the run's job file; what it prints goes to log.txt in the run's folder."""
    write_job(run)
    # as under a launcher, so that a run ends by itself when compare.py is killed
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} if processes == 1 else {}
    with open(run.folder / "log.txt", "w") as log:
        return subprocess.Popen(
            command(run, processes), stdout=log, stderr=log, env={**os.environ, **slot, **launched},
            start_new_session=True,
        )  # fmt: skip


def busy(run):
    """Whether a process that an earlier call left behind still trains this run."""
    lock = Lock(run.folder)
    try:
        lock.acquire()
        lock.file.close()
    except UserError:
        return True
    return False


def outcome(run, seconds):
    """The result of a run that has ended, by its metrics.jsonl."""
    try:
        rows = read_rows(run.folder)
    except (OSError, ValueError):
        rows = []
    last = rows[-1] if rows else {}
    val = curve(rows, "val/loss")
    result = {"status": "failed", "loss": None, "curve": val, "seconds": seconds}
    if last.get("step") == run.config.max_iters and "val/loss" in last:
        # a run that ends above where it began has only blown up
        kept = math.isfinite(float(last["val/loss"])) and val[-1][1] <= val[0][1]
        result |= {"status": "finished", "loss": val[-1][1]} if kept else {"status": "diverged"}
    elif not all(math.isfinite(float(last.get(key, 0))) for key in ("train/loss", "grad_norm")):
        result["status"] = "diverged"
    return result


def check_data(study):
    """Raises UserError for a data set that is missing or broken, before anything runs."""
    from blockwise.loader import Dataset

    for kind in {(c.data_dir, c.dataset, c.block_size, c.vocab_size) for c in study.settings.values()}:
        Dataset.open(*kind).verify()


def run_all(study, stop):
    """Run what is needed until nothing is. Ends early, with the runs saved, once `stop` is true."""
    processes, free = study.config.processes, slots(study.config)
    running = {}  # Run -> (process, its slot, when it started)
    side_by_side, speeds, todo = len(free), [], study.todo()
    while (todo or running) and not stop:
        for run in todo:
            if free and run not in running and not busy(run):
                slot = free.pop()
                running[run] = start(run, processes, slot), slot, time.monotonic()
        time.sleep(0.2)
        for run in [run for run, (process, _, _) in running.items() if process.poll() is not None]:
            _, slot, began = running.pop(run)
            free.append(slot)
            result = outcome(run, time.monotonic() - began)
            study.results[run.folder] = result
            if result["status"] != "failed":
                keep(run, result)
                speeds.append(tokens_of(run.config) / result["seconds"])
            todo = study.todo()
            print(f"{run.label}: {told(run, result)}; {left(study, speeds, side_by_side)}", flush=True)
    for process, _, _ in running.values():
        process.terminate()  # train.py saves and ends
    for process, _, _ in running.values():
        process.wait()


def keep(run, result):
    """Put a result on the disk for good; the weights have served their purpose, unless all were to be kept."""
    path = run.folder / "result.json"
    path.with_suffix(".tmp").write_text(json.dumps(result))
    os.replace(path.with_suffix(".tmp"), path)
    if run.config.keep_checkpoints != -1:
        for path in [*run.folder.glob("ckpt_*.json"), *run.folder.glob("ckpt_*")]:
            path.unlink(missing_ok=True)


def told(run, result):
    if result["status"] == "failed":
        lines = (run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        return f"failed: {lines[-1] if lines else 'it said nothing'} (see {run.folder / 'log.txt'})"
    loss = f"{result['loss']:.4f}" if result["status"] == "finished" else "diverged"
    return f"{loss} in {result['seconds']:.0f} s"


def left(study, speeds, side_by_side):
    """How many runs are done, and how long the rest will take if no grid grows any more."""
    runs, todo = study.runs(), study.todo()
    tokens = sum(tokens_of(run.config) for run in todo) + study.to_come()
    minutes = f"about {tokens / (median(speeds) * side_by_side) / 60:.0f} min left" if speeds else "time left not known"
    return f"{len(runs) - len(todo)} of {len(runs)} known runs done, {minutes}"


# Reporting


def print_plan(study):
    config, runs = study.config, study.runs()
    for place, _ in study.places:
        print(place)
        for arm in config.arms:
            grid = sorted(config.learning_rates[arm])
            floors = [study.run_of(place, arm, rate, config.seeds[0]).config.resolved().min_lr for rate in grid]
            rates = ", ".join(f"{rate:g} (to {floor:g})" for rate, floor in zip(grid, floors, strict=True))
            print(f"  {arm + ':':<20} learning rate (to its floor) {rates}")
    seeds, tokens = len(config.seeds), sum(tokens_of(run.config) for run in runs) + study.to_come()
    single = {tokens_of(settings) for (_, arm), settings in study.settings.items() if not arm.endswith(TWICE)}
    twice = f"; {config.baseline} again with twice the steps" if config.twice else ""
    print(f"a run: {' or '.join(f'{n:,}' for n in sorted(single))} tokens; {seeds} seeds at each arm's best rate{twice}")
    print(f"at least {tokens:,} tokens in all; a grid whose best rate lies at an end grows by up to {config.extensions}")
    seconds = [(tokens_of(run.config), study.result(run)["seconds"]) for run in runs if study.result(run)]
    todo = sum(tokens_of(run.config) for run in study.todo()) + study.to_come()
    if seconds:
        speed = median(n / s for n, s in seconds)
        print(f"{len(seconds)} runs are done; the rest: {todo / speed / 3600:.1f} h over the number of runs side by side")
    else:
        print("time: known once the first run is done (--max_iters=50 --out_dir=out/try gives a quick idea)")


def summary(study):
    """Everything that study.json states: of each comparison and arm the sweep, the best, the seeds, the test."""
    config, places = study.config, {}
    for place, _ in study.places:
        arms, final_losses = {}, {}
        for arm in [a for p, a in study.settings if p == place]:
            runs, losses, best = study.arm(place, arm)
            at_best = [run for run in runs if run.rate == best and study.result(run)]
            curves = {r.seed: study.result(r)["curve"] for r in at_best if study.result(r)["status"] == "finished"}
            swept = sorted((run for run in runs if run.seed == config.seeds[0]), key=lambda run: run.rate)
            final = {run.seed: losses[run.rate, run.seed] for run in at_best}
            final_losses[arm] = final
            mean, deviation = spread(final)
            arms[arm] = {
                "blockwise": study.settings[place, arm].blockwise,
                "sweep": [
                    {
                        "learning_rate": run.rate, "floor": run.config.resolved().min_lr,
                        "status": (study.result(run) or {"status": "not run"})["status"],
                        "loss": (study.result(run) or {"loss": None})["loss"],
                    }
                    for run in swept
                ],
                "best": best, "at_an_end": best in (swept[0].rate, swept[-1].rate) if swept else None,
                "losses": {seed: loss if math.isfinite(loss) else None for seed, loss in final.items()}, "mean": mean, "deviation": deviation, "curves": curves,
            }  # fmt: skip
        for arm in config.arms:
            if arm != config.baseline:
                arms[arm]["test"] = paired(final_losses[arm], final_losses[config.baseline])
                twice = arms.get(config.baseline + TWICE, {"curves": {}})
                arms[arm]["speedup"] = speedups(arms[arm]["curves"], twice["curves"])
        places[place] = arms
    others = [arm for arm in config.arms if arm != config.baseline]
    tests = {arm: [places[place][arm]["test"] for place in places] for arm in others}
    return {
        "verdicts": [verdict(arm, config.baseline, tests[arm]) for arm in others],
        "places": places,
        "runs": [
            {"run": run.label, "folder": str(run.folder), "floor": run.config.resolved().min_lr}
            | {key: (study.result(run) or {}).get(key) for key in ("status", "loss", "seconds")}
            for run in study.runs()
        ],
        "study": asdict(config),
        "commit": commit(),
    }


def report(study, found):
    """report.md: the verdict first, then each comparison, then every run that did not end well."""
    config = study.config
    tokens = tokens_of(study.settings[study.places[0][0], config.baseline])
    lines = [f"# {study.folder.name}", "", *[f"**{line}**" for line in found["verdicts"]], ""]
    lines += [
        f"Final validation loss, in nats per token, of runs of {tokens:,} tokens. An arm's learning rate (that of Norm) is "
        f"the best of its own sweep, made with seed {config.seeds[0]} and judged by the same validation windows as the "
        "result; a grid whose best lay at an end was extended. The floor is what the rate falls to. Gap: arm minus "
        f"{config.baseline}, so below zero the arm is better; mean, interval and p are of the paired differences over "
        f"seeds {', '.join(map(str, config.seeds))}. With several comparisons, one in twenty intervals misses by chance.",
        "",
    ]
    for place, arms in found["places"].items():
        heads = ("arm", "best learning rate", "floor", "mean loss", "deviation", "gap", "95 % interval", "p", "speedup")
        lines += [f"## {place}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [table_row(arm, one) for arm, one in arms.items()]
        lines += ["", *[f"{sentence(a, config.baseline, one['test'])}.\n" for a, one in arms.items() if "test" in one]]
        lines += [f"Learning rate (its floor): loss, with seed {config.seeds[0]}", ""]
        lines += [f"- {arm}: {'; '.join(map(point, one['sweep']))}" for arm, one in arms.items()]
        lines += [""]
    lines += ["![loss against learning rate](learning_rates.png)", "", "![validation loss](curves.png)", ""]
    bad = [run for run in found["runs"] if run["status"] in ("diverged", "failed")]
    lines += ["## Runs that diverged or failed", ""]
    lines += [f"- {run['run']}: {run['status']}" for run in bad] or ["None."]
    arms = [f"{arm} (`{words.strip()}`)" if words.strip() else arm for arm, words in config.arms.items()]
    lines += ["", f"Arms: {', '.join(arms)}. Made by commit {found['commit']}; every key is in study.json, every run's in its job.py.", ""]
    return "\n".join(lines)


def point(p):
    return f"{p['learning_rate']:g} ({p['floor']:g}): {p['status'] if p['loss'] is None else shown(p['loss'])}"


def table_row(arm, one):
    test, speed = one.get("test"), one.get("speedup")
    cells = [arm, "-" if one["best"] is None else f"{one['best']:g}" + (" (at an end)" if one["at_an_end"] else "")]
    floor = next((p["floor"] for p in one["sweep"] if p["learning_rate"] == one["best"]), None)
    lost = sum(loss is None for loss in one["losses"].values())
    cells += ["-" if floor is None else f"{floor:g}", shown(one["mean"]) + (f" ({lost} diverged)" if lost else "")]
    cells += [shown(one["deviation"])]
    if test is None:
        cells += ["", "", "", ""]
    else:
        interval = "-" if test["low"] is None else f"{test['low']:+.4f} to {test['high']:+.4f}"
        cells += [shown(test["gap"], "+"), interval, "-" if test["p"] is None else f"{test['p']:.2g}"]
        cells += [f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "not measured"]
    return f"| {' | '.join(cells)} |"


def shown(number, sign=""):
    return "-" if number is None else f"{number:{sign}.4f}"


def write(study):
    """study.json, report.md and the figures; returns the summary."""
    found = summary(study)
    for name, text in (("study.json", json.dumps(found, indent=1)), ("report.md", report(study, found))):
        path = study.folder / name
        path.with_suffix(".tmp").write_text(text)
        os.replace(path.with_suffix(".tmp"), path)
    subprocess.run([sys.executable, str(ROOT / "plot.py"), "study", str(study.folder)], check=True)
    return found


def main(argv):
    for word in argv:
        if word.startswith(("--learning_rate=", "--seed=", "--init_from=")):
            raise UserError(f"{word}: a study sets that itself; see learning_rates and seeds")
    config, _, flags = configure(StudyConfig, argv, __doc__, FLAGS)
    study = Study(config)
    if "plan" in flags:
        print_plan(study)
        return 0
    lock = Lock(config.out_dir)
    lock.acquire()
    stop = StopRequest()
    check_data(study)
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
