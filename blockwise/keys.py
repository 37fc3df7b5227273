"""The keys of a command: the ranges and paths that their annotations state. Loads nothing."""

import math
import os
import re
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType

from blockwise import UserError

PATH = "path"  # after the meaning in an annotation: the value is a path, or names one


@dataclass(frozen=True)
class Range:
    """An interval of numbers, for the annotation of a key; parentheses in `ends` exclude an end.

    also: a number outside of the interval that is admitted too.
    """

    low: float
    high: float = math.inf
    ends: str = "[]"
    also: float | None = None

    def __contains__(self, x):
        above = x >= self.low if self.ends[0] == "[" else x > self.low
        below = x <= self.high if self.ends[1] == "]" else x < self.high
        return (above and below) or x == self.also

    def __str__(self):
        text = f"in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        if self.high == math.inf:
            text = f"{'at least' if self.ends[0] == '[' else 'above'} {self.low:g}"
        return text if self.also is None else f"{self.also:g} or {text}"


ABOVE_0 = Range(0, ends="(]")
BELOW_1 = Range(0, 1, "[)")  # from 0 on


class Keys:
    """Base of a command's dataclass, whose fields are `name: Annotated[type, "meaning", Range or PATH] = default`.

    Of a dict or a list, the range is that of every value; None and words are not numbers and pass.
    """

    flags = MappingProxyType({})  # {name: meaning} of arguments without a value, which are not keys
    words = None  # the key that takes the arguments without --key=; None: these are config files

    def __post_init__(self):
        """Raises UserError for a number out of its range, and for an integer that 64 bits do not hold."""
        for key, interval in ranges(type(self)).items():
            value = getattr(self, key)
            numbers = {f"{key}.{entry}": x for entry, x in value.items()} if isinstance(value, dict) else {}
            for name, x in (numbers or {key: value}).items():
                for number in x if isinstance(x, list) else [x]:
                    if isinstance(number, int) and number >= 2**63:
                        raise UserError(f"{name}={number}: expected below 2**63")
                    if interval and isinstance(number, int | float) and number not in interval:
                        raise UserError(f"{name}={x}: expected {interval}")

    def check(self, key, holds, expected):
        if not holds:
            raise UserError(f"{key}={getattr(self, key)}: expected {expected}")


@cache
def ranges(cls):
    """{key: its Range, or None} of a dataclass."""
    return {f.name: marker(f.type, Range) for f in fields(cls)}


def marker(hint, kind):
    """The first of an annotation's marks of this type, after the meaning; None without one."""
    return next((mark for mark in getattr(hint, "__metadata__", ())[1:] if isinstance(mark, kind)), None)


def as_path(text):
    """A path as it was meant: ~ is the home folder, and the \\r of a script with Windows' line ends goes."""
    return os.path.expanduser(re.sub(r"[\x00-\x1f\x7f]+$", "", text))
