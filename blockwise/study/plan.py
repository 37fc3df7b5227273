"""A study's plan: which runs the comparison needs, which of them are the same, and what is known of each."""

import json
import math
import re
import shlex
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated

from blockwise import UserError, warn
from blockwise.keys import Range
from blockwise.settings import TrainConfig
from blockwise.study.identity import run_name
from blockwise.study.rules import refined_grid, required_runs

TWICE = " (2x steps)"  # ends the name of the baseline's runs with twice the steps
# What the arms of a comparison must have in common: the budget, and what their losses are measured on
COMMON = ("max_iters", "block_size", "dataset", "data_dir", "vocab_size", "eval_interval", "test_loss")
SET_BY_STUDY = ("--learning_rate=", "--seed=", "--init_from=", "--out_dir=")


@dataclass
class StudyConfig(TrainConfig):
    """The keys of a study, in addition to those of train.py."""

    # fmt: off
    arms: Annotated[dict[str, str], "name: arguments of train.py (files and --key=value) that define this way to train"] = field(default_factory=dict)
    baseline: Annotated[str, "the arm with which the others are compared"] = "adamw"
    learning_rates: Annotated[dict[str, list[float]], "arm: its first grid; one whose best lies at an end is extended"] = field(default_factory=dict)
    tune: Annotated[dict[str, list[float]], "key of train.py: its values; each arm is tuned over these too, one key after the other, from where its own arguments are"] = field(default_factory=dict)
    untuned: Annotated[list[str], "arms that are taken as they are, at the one learning rate that they have"] = field(default_factory=list)
    seeds: Annotated[list[int], "the first makes the sweep, all run at each arm's best learning rate"] = field(default_factory=lambda: [1, 2, 3])
    conditions: Annotated[dict[str, str], "name: arguments; the whole comparison is repeated under each (none: once)"] = field(default_factory=dict)
    floors: Annotated[dict[str, str], "likewise, for where learning rates end; they follow the arm's arguments (none: min_lr for all, and 0.05 learning_rate)"] = field(default_factory=dict)
    twice: Annotated[bool, "run the baseline with twice the steps too, and read the speedup from that"] = False
    extensions: Annotated[int, "learning rates by which a grid may grow", Range(0)] = 6
    jobs: Annotated[int | None, "runs at a time (None: one a GPU; on a CPU one a core)", Range(1)] = None
    processes: Annotated[int, "of each run; above 1, under torchrun", Range(1)] = 1
    # fmt: on

    def __post_init__(self):
        super().__post_init__()
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

    comparison: str
    arm: str
    rate: float
    seed: int
    config: TrainConfig = field(compare=False, repr=False)
    folder: Path = field(compare=False, repr=False)
    values: tuple = ()  # of the tuned keys
    keys: tuple = field(default=(), compare=False, repr=False)

    @property
    def point(self):
        return (self.rate, *self.values)

    @property
    def label(self):
        where = f" ({self.comparison})" if self.comparison else ""
        return f"{self.arm} at {shown_point(self.point, self.keys)}, seed {self.seed}{where}"


class Study:
    """A study's plan and what is known of it: every run follows from the config and from the results so far."""

    def __init__(self, config, parse):
        """parse(args, shared): the TrainConfig that train.py would make of these arguments, starting from `shared`.

        Raises UserError for a study that does not say what to compare, or compares what cannot be compared.
        """
        self.config = config
        self.folder = Path(config.out_dir)
        self.results = {}  # folder of a run -> its result; one that failed is tried again by the next call
        check(config)
        floors = config.floors or {
            "absolute floor": f"--min_lr_ratio=None --min_lr={config.min_lr}",
            "relative floor": "--min_lr_ratio=0.05",
        }
        shared = TrainConfig(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})
        self.settings = {}  # (comparison, arm) -> TrainConfig
        self.comparisons = []  # names of the comparisons: a condition with a floor each
        for (condition, before), (floor, behind) in product((config.conditions or {"": ""}).items(), floors.items()):
            comparison = ", ".join(filter(None, (condition, floor)))
            self.comparisons.append(comparison)
            for arm, args in config.arms.items():
                args = f"{before} {args} {behind}"
                settings = self.settings[comparison, arm] = settings_of(args, shared, arm, parse)
                if arm == config.baseline and config.twice:
                    doubled = {key: 2 * getattr(settings, key) for key in ("max_iters", "lr_decay_iters")}
                    self.settings[comparison, arm + TWICE] = replace(settings, **doubled)
                for key in self.tuned_keys(arm):
                    if getattr(settings, key) is None:
                        raise UserError(f"arm {arm!r}: {key} is not set; expected a value from which to tune it")
            check_common({arm: self.settings[comparison, arm] for arm in config.arms})

    def tuned_keys(self, arm):
        return () if arm in self.config.untuned else tuple(self.config.tune)

    def start(self, comparison, arm):
        """The arm's own values of its tuned keys, from which the tuning begins."""
        return [getattr(self.settings[comparison, arm], key) for key in self.tuned_keys(arm)]

    def run_of(self, comparison, arm, point, seed):
        """point: (learning rate, value of each tuned key)."""
        settings, keys, (rate, *values) = self.settings[comparison, arm], self.tuned_keys(arm), point
        tuned = {key: type(getattr(settings, key))(value) for key, value in zip(keys, values, strict=True)}
        config = replace(settings, learning_rate=rate, seed=seed, init_from="auto", wandb_run_name=arm, **tuned)
        folder = self.folder / "runs" / run_name(config)
        return Run(comparison, arm, rate, seed, replace(config, out_dir=str(folder)), folder, tuple(values), keys)

    def arm(self, comparison, arm):
        """(runs that this arm needs so far, {(point, seed): loss} of those that are done, its best point or None).

        A run that failed has no loss, and no further runs are derived from it.
        """
        grid, best = self.config.learning_rates.get(arm), None
        if arm.endswith(TWICE):
            runs, _, best = self.arm(comparison, arm.removesuffix(TWICE))
            if best is None:
                return [], {}, None
            grid = refined_grid(best[0], {run.rate for run in runs})
        losses, axes = {}, [self.config.tune[key] for key in self.tuned_keys(arm)]
        extensions = 0 if arm in self.config.untuned else self.config.extensions
        while True:  # each result may ask for more runs, whose results may be there already
            pairs, best = required_runs(grid, self.config.seeds, losses, extensions, self.start(comparison, arm), axes)
            runs = [self.run_of(comparison, arm, point, seed) for point, seed in pairs]
            results = {(run.point, run.seed): self.result(run) for run in runs}
            found = {key: loss_of(r) for key, r in results.items() if r and r["status"] != "failed"}
            if found.keys() == losses.keys():
                return runs, losses, best
            losses = found

    def result(self, run):
        """{"status": "finished" | "diverged" | "failed", "loss", "test", "curve", "seconds", "spikes"}, or None: not done.

        loss: by which rates are chosen; test: which is reported, None without test_loss. spikes: None for a run made
        before they were counted.
        """
        path = run.folder / "result.json"
        if run.folder not in self.results and path.is_file():
            try:
                found = json.loads(path.read_text())
                if not isinstance(found["curve"], list) or (found["status"] == "finished" and found["loss"] * 0 != 0):
                    raise ValueError("not what a study writes")
                known = {key: found[key] for key in ("status", "loss", "curve", "seconds")}
                self.results[run.folder] = {**known, "spikes": found.get("spikes"), "test": found.get("test")}
            except (ValueError, KeyError, TypeError) as error:
                warn(f"{path} is broken ({error}): the run is repeated")
                path.unlink()
        return self.results.get(run.folder)

    def runs(self):
        """Every run known to be needed so far; more follow when a best lies at an end of its grid, or once it is known."""
        every = [self.arm(comparison, arm)[0] for comparison, arm in self.settings]
        return list({run.folder: run for runs in every for run in runs}.values())

    def todo(self):
        return [run for run in self.runs() if not self.result(run)]

    def future_tokens(self):
        """Tokens of the runs that will be needed but cannot be named yet, if no grid grows any further."""
        tokens = 0
        for (comparison, arm), settings in self.settings.items():
            runs, _, best = self.arm(comparison, arm)
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
        raise UserError("the study names no arms: expected arms = {NAME: ARGUMENTS, ...} in its file")
    if config.baseline not in config.arms:
        raise UserError(f"baseline={config.baseline}: no such arm; expected one of {', '.join(config.arms)}")
    for arm in config.learning_rates.keys() - config.arms.keys():
        raise UserError(f"learning_rates has an unknown arm {arm!r}: expected one of {', '.join(config.arms)}")
    for arm in config.arms:
        grid = config.learning_rates.get(arm, [])
        if not grid or any(rate <= 0 for rate in grid) or len(set(grid)) < len(grid):
            raise UserError(f"learning_rates.{arm}={grid}: expected at least one rate above 0, none twice")
    for arm in config.untuned:
        known = len(config.learning_rates.get(arm, [])) == 1
        config.check("untuned", known, "arms with one learning rate each")
    numbers = {f.name for f in fields(TrainConfig) if type(f.default) in (int, float)} | {
        "weight_decay",
        "beta1",
        "beta2",
    }
    for key, values in config.tune.items():
        if key not in numbers - {"learning_rate", "seed"}:
            raise UserError(f"tune has {key!r}: expected a key of train.py that is a number, other than learning_rate")
        if len(set(values)) < max(len(values), 2):
            raise UserError(f"tune.{key}={values}: expected at least two values, none twice")
    config.check("twice", not (config.twice and config.tune), "False where keys are tuned")
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


def settings_of(args, shared, arm, parse):
    """TrainConfig of an arm: the shared keys, then its arguments."""
    try:
        args = shlex.split(args)
    except ValueError as error:
        raise UserError(f"arm {arm!r}: {args}: {error}") from None
    check_args(args, f"arm {arm!r}: ")
    return parse(args, shared)


def check_args(args, where=""):
    for arg in args:
        if arg.startswith(SET_BY_STUDY) and (where or not arg.startswith("--out_dir=")):
            raise UserError(f"{where}{arg}: a study sets that itself; see learning_rates, seeds and out_dir")
        if where and arg in ("--help", "-h"):
            raise UserError(f"{where}{arg}: expected files and --key=value")


def tokens_of(config):
    return config.max_iters * config.tokens_per_step


def loss_of(result):
    """The loss by which the sweep judges: infinite for a run that diverged."""
    return result["loss"] if result["status"] == "finished" else math.inf


def reported(result):
    """The loss that counts as the arm's: of the test half where there is one."""
    return loss_of(result) if result["test"] is None else result["test"]


def shown_point(point, keys, remark=""):
    """0.004, beta2 0.99, ...; a remark follows the learning rate."""
    return ", ".join(
        [f"{point[0]:g}{remark}", *(f"{key} {value:g}" for key, value in zip(keys, point[1:], strict=True))]
    )


def floor_of(run):
    floor = run.config.resolved().min_lr
    return f"{floor:g}" + (", above it" if floor > run.rate else "")
