"""The keys of a study, and what makes one that can be compared."""

import re
import shlex
from dataclasses import dataclass, field
from typing import Annotated, Literal

from blockwise import UserError
from blockwise.keys import Range
from blockwise.layer_warmup import layer_schedule
from blockwise.settings import TrainConfig
from blockwise.study.space import RATE, check_key, number_kinds

# What the arms of a comparison must have in common: the budget, and what their losses are measured on
COMMON = ("max_iters", "block_size", "dataset", "data_dir", "vocab_size", "eval_interval", "test_loss", "full_eval")
SET_BY_STUDY = ("--learning_rate=", "--seed=", "--init_from=", "--out_dir=")


@dataclass
class StudyConfig(TrainConfig):
    """The keys of a study, in addition to those of train.py."""

    # fmt: off
    arms: Annotated[dict[str, str], "name: arguments of train.py (files and --key=value) that define this way to train"] = field(default_factory=dict)
    baseline: Annotated[str, "the arm with which the others are compared"] = "adamw"
    learning_rates: Annotated[dict[str, list[float]], "arm: its first grid; one whose best lies at an end is extended"] = field(default_factory=dict)
    search: Annotated[Literal["coordinate", "sobol"], "coordinate: the rate, then one key of `tune` after the other; sobol: the same `points` quasi-random points of `space` for every arm, halved by `rungs`"] = "coordinate"
    tune: Annotated[dict[str, list[float]], "key of train.py, or lr_mult.BLOCK: its values; each arm is tuned over these too, one key after the other, from where its own arguments are"] = field(default_factory=dict)
    space: Annotated[dict[str, list[float | str]], 'sobol: key of train.py: [LOW, HIGH], or [LOW, HIGH, "log"]; of a beta the log of 1 - beta. learning_rate is a factor on the middle of the arm\'s own grid, lr_mult.Emb, or lr_mult.Emb+Head for both at once, one on its own multipliers; an arm with blockwise=False has no multipliers'] = field(default_factory=dict)
    points: Annotated[int, "sobol: points of every arm, however many keys it has", Range(2)] = 16
    rungs: Annotated[list[list[float]], "sobol: [share of the steps, further seeds, points kept] of each round; the best go on to the next, those of the last one run with `seeds`, and a lead must hold against each of them"] = field(default_factory=lambda: [[1.0, 1, 2]])
    untuned: Annotated[list[str], "arms that are taken as they are, at the one learning rate that they have"] = field(default_factory=list)
    seeds: Annotated[list[int], "of the verdict: all run at each arm's best"] = field(default_factory=lambda: [1, 2, 3])
    search_seed: Annotated[int | None, "the search's first seed, which must not be one of `seeds` (None: 1001 with sobol, with coordinate the first of `seeds`, which then counts in the verdict too)"] = None
    looks: Annotated[list[int], "numbers of seeds after which one looks, such as 8,16,32: an arm whose verdict is clear by the stricter bound of its look has no more (none: all seeds, one look)"] = field(default_factory=list)
    margin: Annotated[float, "nats: a gap below it is worth nothing", Range(0)] = 0.01
    conditions: Annotated[dict[str, str], "name: arguments; the whole comparison is repeated under each (none: once)"] = field(default_factory=dict)
    floors: Annotated[dict[str, str], "likewise, for where learning rates end; they follow the arm's arguments (none: min_lr for all, and 0.05 learning_rate)"] = field(default_factory=dict)
    twice: Annotated[bool, "run the baseline with twice the steps too, and read the speedup from that"] = False
    extensions: Annotated[int, "learning rates by which a grid may grow", Range(0)] = 6
    runs: Annotated[str | None, "folder of the runs, which studies may share (None: out_dir/runs)"] = None
    engine: Annotated[Literal["local", "ray"], "where the runs are made; local: on this machine; ray: as tasks of a Ray cluster, whose nodes share the folders"] = "local"
    address: Annotated[str | None, "engine=ray: address of the cluster; auto: the one that this machine is in (None: RAY_ADDRESS, or a cluster of this machine alone)"] = None
    jobs: Annotated[int | None, "runs at a time (None: one a GPU, on a CPU one a core; engine=ray: as many as there is room for)", Range(1)] = None
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
        looks = self.looks
        rising = looks == sorted(set(looks)) and all(2 <= n <= len(self.seeds) for n in looks)
        self.check("looks", rising, f"rising numbers from 2 to the {len(self.seeds)} of seeds")
        divides = self.gradient_accumulation_steps % self.processes == 0
        self.check("gradient_accumulation_steps", divides, f"a multiple of processes={self.processes}")


def config_file(keys, head):
    """The text of a config file with {key: value}, behind comments."""
    return "".join([f"{head}\n", *(f"{key} = {value!r}\n" for key, value in keys.items())])


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
    single = all(len(config.learning_rates.get(arm, [])) == 1 for arm in config.untuned)
    config.check("untuned", single, "arms with one learning rate each")
    for key, values in config.tune.items():
        check_key(key, "tune")
        if key == RATE or len(set(values)) < max(len(values), 2):
            raise UserError(f"tune.{key}={values}: expected another key than {RATE}, at least two values, none twice")
        if number_kinds().get(key) is int and any(value % 1 for value in values):
            raise UserError(f"tune.{key}={values}: expected integers")
    config.check("twice", not (config.twice and (config.tune or config.looks)), "False with tune or looks")
    seeds = config.seeds
    config.check("seeds", seeds and len(set(seeds)) == len(seeds) and min(seeds) >= 0, "different numbers, at least 0")
    if config.search == "sobol":
        check_sobol(config)
    config.check("space", config.search == "sobol" or not config.space, "none with search=coordinate, which has tune")


def check_sobol(config):
    """Raises UserError for a Sobol search that cannot be made."""
    config.check("tune", not config.tune, "none with search=sobol, which has space")
    config.check("twice", not config.twice, "False with search=sobol, whose rungs give the speedup")
    config.check("space", config.space, "at least one key with its range")
    points = config.points
    for rung in config.rungs or [[]]:
        whole = len(rung) == 3 and all(float(number).is_integer() for number in rung[1:])
        holds = whole and 0 < rung[0] <= 1 and rung[1] >= 1 and 1 <= rung[2] <= points
        config.check("rungs", holds, "[share of the steps, seeds, points kept] each, of ever fewer points")
        points = rung[2]
    first = 1001 if config.search_seed is None else config.search_seed
    searched = range(first, first + sum(int(rung[1]) for rung in config.rungs))
    config.check("search_seed", not set(searched) & set(config.seeds), f"none of the search's {searched} in seeds")


def check_common(arms):
    """Raises UserError where arms of one comparison differ in budget or in what their losses are measured on."""
    shared = {key: {arm: getattr(settings, key) for arm, settings in arms.items()} for key in COMMON}
    shared["tokens a step"] = {arm: tokens_of(settings) // settings.max_iters for arm, settings in arms.items()}
    shared["sequences of an evaluation"] = {arm: s.eval_iters * s.batch_size for arm, s in arms.items()}
    for key, values in shared.items():
        if len(set(values.values())) > 1:
            raise UserError(f"arms differ in {key}: {values}; expected the same for all")


def settings_of(args, shared, arm, configure):
    """TrainConfig of an arm: the shared keys, then its arguments."""
    try:
        args = shlex.split(args)
    except ValueError as error:
        raise UserError(f"arm {arm!r}: {args}: {error}") from None
    check_args(args, f"arm {arm!r}: ")
    try:
        settings, _, _ = configure(TrainConfig, args, "", start=shared)
        layer_schedule(settings.resolved())  # raises UserError for a shape that does not divide
    except UserError as error:
        raise UserError(f"arm {arm!r}: {error}") from None
    return settings


def check_args(args, where=""):
    for arg in args:
        if arg.startswith(SET_BY_STUDY) and (where or not arg.startswith("--out_dir=")):
            raise UserError(f"{where}{arg}: set by the study itself; see learning_rates, seeds and out_dir")
        if where and arg in ("--help", "-h"):
            raise UserError(f"{where}{arg}: expected files and --key=value")


def tokens_of(config):
    return config.max_iters * config.gradient_accumulation_steps * config.batch_size * config.block_size
