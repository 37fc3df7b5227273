"""Compare ways to train ("arms") fairly: each at its own best learning rate, at equal budgets, over several seeds.

    python compare.py config/study_cpu.py --plan                  # what would run, and what it costs
    python compare.py config/study_cpu.py                         # run it; the same command resumes it
    python compare.py config/study_cpu.py --seeds=1,2,3,4,5 --out_dir=out/more_seeds
    python compare.py --report out/study_cpu docs/studies/*       # report.md and study.json again; nothing is run

A study's file sets keys of train.py, which all runs share, and the keys of a study below. Every run is train.py in a
process of its own. Into out_dir go study.json, report.md and figures, and the runs themselves into out_dir/runs.
"""

import subprocess
import sys
from pathlib import Path

from blockwise import exit_on_user_error, print0, warn
from blockwise.layer_warmup import layer_schedule
from blockwise.rundir import run_lock
from blockwise.settings import TrainConfig
from blockwise.signals import StopRequest, end_with_launcher
from blockwise.study.config import StudyConfig, check_args
from blockwise.study.plan import Study
from blockwise.study.report import again, print_plan, write
from blockwise.study.runner import run_all
from configurator import configure

PLOT = Path(__file__).resolve().parent / "plot.py"
FLAGS = {"plan": "print the runs and their cost, and exit; needs no data"}


def parse(args, shared):
    """TrainConfig of an arm: the shared keys, then its arguments."""
    settings, _, _ = configure(TrainConfig, args, "", start=shared)
    layer_schedule(settings.resolved())  # a shape that does not divide is known before anything runs
    return settings


def check_machine(study):
    """Raises UserError for a device that is not there, a data set that is missing or broken, before anything runs."""
    from blockwise.data.mixture import open_dataset
    from blockwise.distributed import auto_device, find_device

    if study.config.engine == "local":  # a cluster's nodes have devices of their own
        find_device(auto_device(study.config.device))
    for kind in dict.fromkeys((c.data_dir, c.dataset, c.block_size, c.vocab_size) for c in study.settings.values()):
        open_dataset(*kind).verify()


def draw(folder):
    """The study's figures, in a process that loads no torch."""
    drawn = subprocess.run([sys.executable, str(PLOT), "study", str(folder)])
    if drawn.returncode:
        warn(f"the figures were not drawn: python plot.py study {folder}")


def main(argv):
    if argv[:1] == ["--report"]:
        for folder in argv[1:]:
            again(folder)
        return 0
    check_args(argv)
    config, _, flags = configure(StudyConfig, argv, __doc__, FLAGS)
    study = Study(config, parse)
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
        print0(f"stopped by {stop.signal}; the same command resumes it")
        return 0
    found = write(study)
    draw(study.folder)
    print0("\n".join([f"wrote {study.folder / 'report.md'}", *found["verdicts"]]))
    return 1 if any(run["status"] == "failed" for run in found["runs"]) else 0


if __name__ == "__main__":
    end_with_launcher()
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
