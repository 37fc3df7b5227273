"""The space of a search: keys of train.py with a range each, and what a value of one does to a run's settings."""

import math
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import get_args

from blockwise import UserError
from blockwise.settings import BLOCKS, TrainConfig
from blockwise.study.rules import round_digits

RATE, MULT = "learning_rate", "lr_mult."
NEAR_END = 0.1  # of a range: a best value in there may have a better one beyond
# What all arms have in common, the budget and what losses are measured on; and what a study sets itself
NOT_SEARCHED = {
    "max_iters", "batch_size", "gradient_accumulation_steps", "block_size", "vocab_size", "eval_interval", "eval_iters",
    "seed", "data_seed",
}  # fmt: skip
STEPS = ("max_iters", "lr_decay_iters", "warmup_iters", "eval_interval")  # what a share of the budget shortens


@dataclass(frozen=True)
class Axis:
    """The range of one key. A log range is even in log(value), that of a beta in log(1 - value)."""

    key: str
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, key, words):
        """words: [low, high] or [low, high, "log"]. Raises UserError for anything else, or a key that is no number."""
        check_key(key, "space")
        try:
            low, high = map(float, words[:2])
            axis = cls(key, low, high, words[2:] == ["log"])
            holds = low < high and words[2:] in ([], ["log"]) and axis.bent(low) != axis.bent(high)
        except (ValueError, TypeError):  # not two numbers, or the logarithm of one that has none
            holds = False
        if not holds:
            raise UserError(f'space.{key}={words}: expected [LOW, HIGH] or [LOW, HIGH, "log"], LOW below HIGH')
        return axis

    def bent(self, value):
        return value if not self.log else math.log(1 - value if "beta" in self.key else value)

    def value(self, quantile):
        bent = self.bent(self.low) + quantile * (self.bent(self.high) - self.bent(self.low))
        value = bent if not self.log else 1 - math.exp(bent) if "beta" in self.key else math.exp(bent)
        return round(value) if number_kinds().get(self.key) is int else round_digits(value)

    def quantile(self, value):
        return (self.bent(value) - self.bent(self.low)) / (self.bent(self.high) - self.bent(self.low))


def check_key(key, where):
    """Raises UserError for a key that a search cannot move."""
    if key.startswith(MULT):
        holds = set(key.removeprefix(MULT).split("+")) <= set(BLOCKS)
    else:
        holds = key in number_kinds().keys() - NOT_SEARCHED
    if key in NOT_SEARCHED:
        raise UserError(f"{where} has {key!r}: expected a key in which the runs of a comparison may differ")
    if not holds:
        expected = f"a key of train.py that is a number, or {MULT}BLOCK, or {MULT}BLOCK+BLOCK for several at once"
        raise UserError(f"{where} has {key!r}: expected {expected}")


@cache
def number_kinds():
    """{key of train.py that is a number: int or float}"""
    kinds = {f.name: get_args(f.type)[0] for f in fields(TrainConfig)}
    numbers = {name: {kind, *get_args(kind)} & {int, float} for name, kind in kinds.items()}
    return {name: kind.pop() for name, kind in numbers.items() if len(kind) == 1}


def split_factors(changes):
    """({key of train.py: value}, {block: factor}) of {key: value}; "lr_mult.X+Y" is a factor of the blocks X and Y."""
    values, factors = {}, {}
    for key, value in changes.items():
        if key.startswith(MULT):
            for block in key.removeprefix(MULT).split("+"):
                factors[block] = factors.get(block, 1.0) * value
        else:
            values[key] = number_kinds()[key](value)
    return values, factors


def applied(settings, changes):
    """Settings with {key: value} applied, factors to the multipliers that they have."""
    values, factors = split_factors(changes)
    if any(factor != 1 for factor in factors.values()):
        own = settings.resolved_without_data().lr_mult
        values["lr_mult"] = {block: round_digits(mult * factors.get(block, 1)) for block, mult in own.items()}
    return replace(settings, **values)


def shortened(settings, budget):
    """Settings of a run with this share of the steps: the schedule keeps its shape."""
    shorter = {key: math.ceil(getattr(settings, key) * budget) for key in STEPS}
    return replace(settings, **shorter) if budget != 1 else settings
