"""A study's plan: which runs the comparison needs, which of them are the same, and what is known of each."""

import math
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import chain, product
from pathlib import Path
from statistics import median

from blockwise import UserError, warn
from blockwise.settings import TrainConfig
from blockwise.study.config import check, check_common, settings_of, tokens_of
from blockwise.study.identity import run_name
from blockwise.study.results import ResultsFile, read_result
from blockwise.study.rules import coordinate, halving, middle, refined_grid, round_digits, sobol
from blockwise.study.space import MULT, RATE, Axis, applied, shortened
from blockwise.study.verdict import judge, look_levels

TWICE = " (2x steps)"  # ends the name of the baseline's runs with twice the steps


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
    budget: float = 1.0  # share of the study's steps

    @property
    def point(self):
        return (self.rate, *self.values)

    @property
    def label(self):
        short = "" if self.budget == 1 else f", {self.config.max_iters} steps"
        where = f" ({self.comparison})" if self.comparison else ""
        return f"{self.arm} at {shown_point(self.point, self.keys)}, seed {self.seed}{short}{where}"


class Study:
    """A study's plan and what is known of it: every run follows from the config and from the results so far."""

    def __init__(self, config, configure):
        """configure: of configurator.py, which no room imports.

        Raises UserError for a study that does not say what to compare, or compares what cannot be compared.
        """
        self.config = config
        self.folder = Path(config.out_dir)
        self.file = ResultsFile(self.folder / "results.jsonl")
        self.results = dict(self.file.results)  # name of a run -> its result; the next call tries one that failed again
        self.runs_folder = Path(config.runs or self.folder / "runs")
        check(config)
        self.axes = {key: Axis.of(key, words) for key, words in config.space.items()}  # none: search=coordinate
        default_seed = 1001 if self.axes else config.seeds[0]
        self.search_seed = default_seed if config.search_seed is None else config.search_seed
        self.quantiles = sobol(self.axes, config.points, self.search_seed) if self.axes else []
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
                settings = self.settings[comparison, arm] = settings_of(args, shared, arm, configure)
                if arm == config.baseline and config.twice:
                    doubled = {key: 2 * getattr(settings, key) for key in ("max_iters", "lr_decay_iters")}
                    self.settings[comparison, arm + TWICE] = replace(settings, **doubled)
                if not self.axes and None in (start := self.start(comparison, arm)):
                    key = self.keys(comparison, arm)[start.index(None)]
                    raise UserError(f"arm {arm!r}: {key} is not set; expected a value from which to tune it")
            check_common({arm: self.settings[comparison, arm] for arm in config.arms})

    def keys(self, comparison, arm):
        """The keys over which this arm is tuned, besides its learning rate."""
        if arm in self.config.untuned:
            return ()
        blockwise = self.settings[comparison, arm].blockwise
        return tuple(k for k in self.axes or self.config.tune if k != RATE and (blockwise or not k.startswith(MULT)))

    def start(self, comparison, arm):
        """The arm's own values of these keys, from which a search by coordinates begins."""
        settings = self.settings[comparison, arm]
        return [1.0 if key.startswith(MULT) else getattr(settings, key) for key in self.keys(comparison, arm)]

    def points(self, comparison, arm):
        """An arm's points of the shared sequence; the one at its own rate where it has nothing to tune."""
        centre, keys = middle(self.config.learning_rates[arm]), self.keys(comparison, arm)
        if arm in self.config.untuned:
            return [(centre,)]
        factors = [self.axes[RATE].value(q[RATE]) if RATE in q else 1.0 for q in self.quantiles]
        values = [tuple(self.axes[key].value(q[key]) for key in keys) for q in self.quantiles]
        return [(round_digits(centre * f), *rest) for f, rest in zip(factors, values, strict=True)]

    @cache  # noqa: B019 (a study lives as long as its process)
    def run_of(self, comparison, arm, point, seed, budget=1.0):
        """point: (learning rate, value of each key of the arm); budget: share of the study's steps."""
        keys, (rate, *values) = self.keys(comparison, arm), point
        changes = {RATE: rate, **dict(zip(keys, values, strict=True))}
        settings = shortened(applied(self.settings[comparison, arm], changes), budget)
        config = replace(settings, seed=seed, init_from="auto", wandb_run_name=arm)
        folder = self.runs_folder / run_name(config)
        config = replace(config, out_dir=str(folder))
        return Run(comparison, arm, rate, seed, config, folder, tuple(values), keys, budget)

    def required(self, comparison, arm, losses):
        """([(point, seed, budget), ...] that the arm's search needs, its best points or None): see `searched`."""
        config = self.config
        if arm.endswith(TWICE):
            runs, _, best = self.searched(comparison, arm.removesuffix(TWICE))
            grid = best and refined_grid(best[0][0], {run.rate for run in runs})
        elif self.axes:
            rungs = [(float(share), int(seeds), int(keep)) for share, seeds, keep in config.rungs]
            points = self.points(comparison, arm)
            return ([], points) if len(points) == 1 else halving(points, rungs, self.search_seed, losses)
        else:
            grid, best = config.learning_rates[arm], ()
        if best is None:
            return [], None
        extensions = 0 if arm in config.untuned else config.extensions
        axes, known = [config.tune[key] for key in self.keys(comparison, arm)], {run[0]: x for run, x in losses.items()}
        points, best = coordinate(grid, self.start(comparison, arm), axes, known, extensions)
        return [(point, self.search_seed, 1.0) for point in points], best and [best]

    def searched(self, comparison, arm):
        """(runs of the arm's search so far, {(point, seed, budget): loss} of those that are done, best points or None).

        The first of the best points is the arm's; its runners-up run with the verdict's seeds too. Nothing follows from
        a run that failed.
        """
        losses = {}
        while True:  # each result may ask for more runs, whose results may be there already
            required, best = self.required(comparison, arm, losses)
            runs = [self.run_of(comparison, arm, *run) for run in required]
            results = {run: self.result(found) for run, found in zip(required, runs, strict=True)}
            found = {run: loss_of(r) for run, r in results.items() if r and r["status"] != "failed"}
            if found.keys() == losses.keys():
                return runs, losses, best
            losses = found

    def at_best(self, comparison, arm, seeds):
        """The runs of the verdict, a list for each of the arm's best points; none while these are not known."""
        best = self.searched(comparison, arm)[2]
        return [[self.run_of(comparison, arm, point, seed) for seed in seeds] for point in best or ()]

    def losses(self, comparison, arm, seeds):
        """{seed: loss that counts} of each of the arm's best points; none unless all of their runs are done."""
        results = [{run.seed: self.result(run) for run in runs} for runs in self.at_best(comparison, arm, seeds)]
        done = all(r and r["status"] != "failed" for point in results for r in point.values())
        return [{seed: reported(r) for seed, r in point.items()} for point in results] if done else []

    def seeds_of(self, comparison):
        """{arm: the seeds of its verdict so far}: by `looks`, an arm that is still undecided has those of the next."""
        config, arms = self.config, [arm for c, arm in self.settings if c == comparison]
        looks = tuple(config.looks or [len(config.seeds)])
        at = dict.fromkeys(arms, 0)
        while True:
            at |= {arm: max(at.values()) for arm in arms if arm.removesuffix(TWICE) == config.baseline}
            seeds = {arm: config.seeds[: looks[look]] for arm, look in at.items()}
            losses = {arm: self.losses(comparison, arm, seeds[arm]) for arm in config.arms} if len(looks) > 1 else {}
            if not losses or [] in losses.values():
                return seeds
            levels = {arm: look_levels(looks)[look] for arm, look in at.items()}
            tests = judge(losses, config.baseline, config.margin, levels)
            more = [arm for arm, test in tests.items() if test["word"] == "undecided" and at[arm] + 1 < len(looks)]
            if not more:
                return seeds
            at |= {arm: at[arm] + 1 for arm in more}

    def arm(self, comparison, arm):
        """(every run that this arm needs so far, whether its search is done)."""
        runs, _, best = self.searched(comparison, arm)
        final = self.at_best(comparison, arm, self.seeds_of(comparison)[arm])
        return list(dict.fromkeys([*runs, *chain(*final)])), best is not None

    def result(self, run):
        """What `outcome` says of a run, or None."""
        name, path = run.folder.name, run.folder / "result.json"
        if name not in self.results and path.is_file():
            try:
                self.results[name] = read_result(run.folder)
            except (ValueError, KeyError, TypeError) as error:
                warn(f"{path} is broken ({error}): the run is repeated")
                path.unlink()
        return self.results.get(name)

    def runs(self):
        """Every run known to be needed so far; more follow from their losses."""
        every = [self.arm(comparison, arm)[0] for comparison, arm in self.settings]
        return list({run.folder: run for runs in every for run in runs}.values())

    def todo(self):
        return [run for run in self.runs() if not self.result(run)]

    def future_tokens(self):
        """Tokens of the runs that cannot be named yet, if no grid grows and the first look is the last."""
        tokens = 0
        for (comparison, arm), settings in self.settings.items():
            runs, done = self.arm(comparison, arm)
            missing = 3 if arm.endswith(TWICE) and not runs else 0
            points = self.config.points
            for share, seeds, keep in self.config.rungs if self.axes and not done else ():
                missing += share * points * seeds
                points = keep
            if not done:
                fresh = len([seed for seed in self.seeds_of(comparison)[arm] if seed != self.search_seed])
                missing += fresh * points - sum(run.budget for run in runs) if self.axes else fresh
            tokens += round(missing * tokens_of(settings))
        return tokens

    def tokens_left(self):
        return sum(tokens_of(run.config) for run in self.todo()) + self.future_tokens()

    def speed(self):
        """Tokens a second of a run, by the median of those that are done; None before there is one."""
        done = [(run, result) for run in self.runs() if (result := self.result(run)) and result["seconds"]]
        return median(tokens_of(run.config) / result["seconds"] for run, result in done) if done else None


def loss_of(result):
    """The loss by which the sweep judges: infinite for a run that diverged."""
    return result["loss"] if result["status"] == "finished" else math.inf


def reported(result):
    """The loss that counts as the arm's: of the test half where there is one."""
    return loss_of(result) if result["test"] is None else result["test"]


def shown_point(point, keys):
    """0.004, beta2 0.99, ..."""
    return ", ".join([f"{point[0]:g}", *(f"{key} {value:g}" for key, value in zip(keys, point[1:], strict=True))])
