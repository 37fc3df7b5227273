"""Compare ways to train ("arms") fairly: each at its own best learning rate, at equal budgets, over several seeds.

    python compare.py config/study_cpu.py --plan                  # what would run, and what it costs
    python compare.py config/study_cpu.py                         # run it; the same command resumes it
    python compare.py config/study_cpu.py --seeds=1,2,3,4,5 --out_dir=out/more_seeds
    python compare.py --report out/study_cpu docs/studies/*       # report.md and study.json again; nothing is run

A study's file sets keys of train.py, which all runs share, and the keys of a study below. Every run is train.py in a
process of its own. Into out_dir go study.json, report.md and figures, and the runs themselves into out_dir/runs.
"""

import sys

from blockwise import UserError, exit_on_user_error
from blockwise.signals import end_with_launcher
from blockwise.study.config import StudyConfig, check_args
from blockwise.study.plan import Study
from blockwise.study.report import again, print_plan
from blockwise.study.session import any_failed, run_study
from configurator import configure

FLAGS = {"plan": "print the runs and their cost, and exit; needs no data"}


def main(argv):
    if argv[:1] == ["--report"]:
        if not argv[1:]:
            raise UserError("--report: expected folders of finished studies behind it")
        for folder in argv[1:]:
            again(folder)
        return 0
    check_args(argv)
    config, _, flags = configure(StudyConfig, argv, __doc__, FLAGS)
    study = Study(config, configure)
    if "plan" in flags:
        print_plan(study)
        return 0
    from blockwise.training.machine import check_machine

    device = config.device if config.engine == "local" else None  # a cluster's nodes have devices of their own
    check_machine(study.settings.values(), device)
    found = run_study(study)
    return 1 if found and any_failed(found) else 0


if __name__ == "__main__":
    end_with_launcher()
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
