"""What a check is: a name, a measured value and a bound, on one line `name value bound PASS|FAIL`."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from blockwise import first_line


class Skip(Exception):
    """Raised by a check that cannot be made here; its message says why."""


@dataclass(frozen=True)
class Bound:
    """What a value has to be: as it is printed, without spaces, and as a function of the value."""

    text: str
    holds: Callable


def at_most(limit):
    return Bound(f"<={limit:g}", lambda value: value <= limit)


def at_least(limit):
    return Bound(f">={limit:g}", lambda value: math.isfinite(value) and value >= limit)


def between(low, high):
    return Bound(f"{low:g}..{high:g}", lambda value: low <= value <= high)


def equal(expected):
    return Bound(f"=={expected}", lambda value: value == expected)


ABOVE_ZERO = Bound(">0(tiny)", lambda value: math.isfinite(value) and value > 0)  # in place of one that needs a GPU
REPORTED = Bound("finite", math.isfinite)  # measured for the record


@dataclass
class Check:
    """verdict: PASS, FAIL or SKIP; reason: of a skip, or of a check that failed before it had a value."""

    name: str
    value: object
    bound: str
    verdict: str
    reason: str = ""

    def __str__(self):
        value = "-" if self.value is None else f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        return f"{self.name} {value} {self.bound} {self.verdict}" + (f" ({self.reason})" if self.reason else "")


class Report:
    """Makes checks, prints each when it is made, and remembers them all."""

    def __init__(self):
        self.checks = []

    def check(self, name, bound, measure, skip=""):
        """Compare what measure() returns with a bound. An error that it raises is the check's failure.

        skip: why it cannot be made here, which counts neither way; measure() may raise Skip, too.
        """
        value, reason = None, skip
        try:
            value = None if skip else measure()
            verdict = "SKIP" if skip else "PASS" if bound.holds(value) else "FAIL"
        except Skip as error:
            verdict, reason = "SKIP", str(error)
        except Exception as error:
            verdict, reason = "FAIL", f"{type(error).__name__}: {first_line(error)}"
        self.add(Check(name, value, bound.text, verdict, reason))

    def section(self, name, function, *args):
        """Call a function that makes checks; an error that ends it is one more failure."""
        try:
            function(self, *args)
        except Exception as error:
            self.add(Check(name, None, "ends", "FAIL", f"{type(error).__name__}: {first_line(error)}"))

    def add(self, check):
        self.checks.append(check)
        print(check, flush=True)

    def count(self, verdict):
        return sum(check.verdict == verdict for check in self.checks)

    @property
    def status(self):
        """The exit status: 1 where a check failed, or where none was made."""
        return 1 if self.count("FAIL") or not self.checks else 0

    def write(self, path, machine, seconds):
        """All checks as JSON, with the machine and the seconds of each phase; NaN and infinities become strings."""
        checks = [asdict(check) for check in self.checks]
        for check in checks:
            if isinstance(check["value"], float) and not math.isfinite(check["value"]):
                check["value"] = str(check["value"])
        results = {"machine": machine, "seconds": seconds, "status": self.status, "checks": checks}
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
