"""A study from its plan to its report: what compare.py and tune.py do with one."""

import subprocess
import sys
from pathlib import Path

from blockwise import print0, warn
from blockwise.rundir import run_lock
from blockwise.signals import StopRequest
from blockwise.study.report import print_plan, write
from blockwise.study.runner import run_all

PLOT = Path(__file__).resolve().parents[2] / "plot.py"


def run_study(study):
    """Make a study's runs, report and figures. Returns what study.json holds.

    None where a signal ended it: the runs are saved, and the next call goes on. Raises UserError where another process
    has its folder.
    """
    with run_lock(study.folder):
        stop = StopRequest()
        print_plan(study)
        run_all(study, stop)
        if stop:
            print0(f"stopped by {stop.signal}; the same command resumes it")
            return None
        found = write(study)
        draw(study.folder)
        print0("\n".join([f"wrote {study.folder / 'report.md'}", *found["verdicts"]]))
        return found


def draw(folder):
    """The study's figures, in a process that loads no torch."""
    drawn = subprocess.run([sys.executable, str(PLOT), "study", str(folder)])
    if drawn.returncode:
        warn(f"the figures were not drawn: python plot.py study {folder}")


def any_failed(found):
    return any(run["status"] == "failed" for run in found["runs"])
