"""The proof of a refactoring: the same runs in two trees, every logged number compared.

    python bench/same_rows.py HEAD~1                      # that commit against the files as they are here
    python bench/same_rows.py v1 v2 --only=muon,auto      # two commits, some of the runs

Each run below takes 24 steps of a tiny model on made-up text, in float32 on the CPU unless it says otherwise. Rows of
metrics.jsonl must be equal to the last bit, wall times and memory aside. A second pass interrupts the first tree's run
after 12 steps and resumes its checkpoint in both trees, since old checkpoints must stay usable. Keys that only the
second tree logs are listed; a key that it no longer logs is a difference.
Exit status 1 where anything differs.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from harness import ROOT, run_python, torchrun, write_text

from blockwise import UserError, exit_on_user_error
from blockwise.curves import read_rows
from blockwise.keys import Keys
from configurator import configure

NOT_COMPARED = {"step_ms", "tokens_per_s", "mfu", "mem_mb", "curvature/ms"}  # wall time and memory
COMMON = (
    "--dataset=made_up", "--device=cpu", "--n_layer=4", "--n_head=2", "--n_embd=32", "--block_size=32",
    "--batch_size=4", "--gradient_accumulation_steps=4", "--eval_iters=4", "--eval_interval=8", "--max_iters=24",
    "--lr_decay_iters=24", "--warmup_iters=4", "--learning_rate=1e-3",
)  # fmt: skip
CURVATURE = "--curvature_interval=4 --curvature_batch_size=3"
RUNS = {
    "llama": "--model_type=llama",
    "adamw": "--model_type=llama --blockwise=False",
    "gpt2_dropout": "--dropout=0.2 --bias=True",
    "lion": "--optimizer=lion --learning_rate=1e-4 --schedule=linear",
    "adam_mini_curvature": f"--model_type=llama --n_kv_head=1 --optimizer=adam_mini {CURVATURE}",
    "sgd": f"--optimizer=sgd --learning_rate=1e-2 --lr_mult.Norm=2 {CURVATURE}",
    "arch_warmup": "--model_type=llama --arch_warmup=True --arch_warmup_groups=2 --arch_warmup_interval=6 "
    f"--qk_clip=0.05 {CURVATURE}",
    "auto": "--model_type=llama --lr_mult=auto --auto_mult_step=5 --sharpness_interval=4",
    "bfloat16": "--model_type=llama --dtype=bfloat16 --z_loss=1e-3 --qk_norm=True --logit_softcap=5",
    "float16_skip": "--dtype=float16 --nan_policy=skip --learning_rate=3e-2",
    "wsd_profile": "--schedule=wsd --wsd_boost=paper --profile=True --min_lr_scaled=True "
    "--activation_checkpointing=True",
    "muon": "--optimizer=muon --bias=True --wd_mult.Norm=0 --log_interval=5",
    "best_only": "--always_save_checkpoint=False --eval_interval=3 --min_lr_ratio=0.1",
    "processes": "--model_type=llama --dropout=0.1 --sharpness_interval=8 --curvature_interval=8",  # on two of them
}


@dataclass
class SameRowsConfig(Keys):
    """The keys of same_rows.py."""

    words = "revisions"
    revisions: Annotated[list[str], "commit to compare with, and a second one (else the files as they are)"] = field(
        default_factory=list
    )
    only: Annotated[list[Literal[tuple(RUNS)]], "names of runs"] = field(default_factory=lambda: list(RUNS))

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= len(self.revisions) <= 2:
            raise UserError(f"{len(self.revisions)} revisions: expected one or two")


def main(argv):
    config, _, _ = configure(SameRowsConfig, argv, __doc__)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        write_text(scratch / "data")
        revisions = [*config.revisions, ""][:2]
        with tree_of(revisions[0], scratch / "tree0") as first, tree_of(revisions[1], scratch / "tree1") as second:
            return compare_trees(first, second, config.only, scratch)


def compare_trees(first, second, names, scratch):
    """Run everything in both trees, print a line for each comparison, and return the exit status."""

    def outs(folder):
        return {name: scratch / folder / name for name in names}

    trees = {"first": first, "second": second}
    for side, tree in trees.items():
        train(tree, scratch, outs(side))
    train(first, scratch, outs("half"), "--max_iters=12")
    for side, tree in trees.items():
        shutil.copytree(scratch / "half", scratch / f"{side}, resumed")
        train(tree, scratch, outs(f"{side}, resumed"), "--init_from=resume")
    same = [
        report(name + resumed, *(scratch / f"{side}{resumed}" / name for side in trees))
        for resumed in ("", ", resumed")
        for name in names
    ]
    different = same.count(False)
    print(f"{len(same)} comparisons, {different} different")
    return 1 if different else 0


@contextmanager
def tree_of(revision, folder):
    """The root of a checkout of `revision`, "" for the files as they are here."""
    if not revision:
        yield ROOT
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    made = subprocess.run([*git, "add", "--detach", str(folder), revision], capture_output=True, text=True)
    if made.returncode:
        raise UserError(f"{revision} cannot be checked out: {made.stderr.strip().splitlines()[-1]}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


# Runs train.py several times in one process, since loading torch takes longer than a run; argument: [[name, keys], ...]
DRIVER = """
import json, runpy, sys
for name, keys in json.loads(sys.argv[1]):
    sys.argv = ["train.py", *keys]
    try:
        runpy.run_path("train.py", run_name="__main__")
    except SystemExit as end:
        if end.code not in (0, 3):  # 3: stopped by a loss that is not finite, which is to be the same too
            sys.exit(f"{name}: exit status {end.code}")
"""


def train(tree, scratch, outs, *more):
    """Run train.py in a tree for each {name: out_dir}; raises UserError if one fails."""
    jobs = {
        name: [*COMMON, *RUNS[name].split(), *more, f"--data_dir={scratch / 'data'}", f"--out_dir={out}"]
        for name, out in outs.items()
    }
    several = jobs.pop("processes", None)
    for command in (jobs and ["-c", DRIVER, json.dumps(list(jobs.items()))], several and [*torchrun(2), *several]):
        if command:
            run_python(command, threads=1, cwd=tree, env={"PYTHONPATH": str(tree)})


def report(name, first, second):
    """Print how two runs compare; returns whether all that the first one logged is the same in the second."""
    rows = [read_rows(out) for out in (first, second)]
    difference = difference_of(*rows)
    added = sorted({key for row in rows[1] for key in row} - {key for row in rows[0] for key in row})
    note = f"; only in the second: {', '.join(added)}" if added else ""
    print(f"{name:<32}{difference or f'{len(rows[0])} rows are the same'}{note}", flush=True)
    return not difference


def difference_of(first, second):
    """The first difference between two lists of rows in a phrase, None if there is none."""
    if len(first) != len(second):
        return f"{len(first)} rows against {len(second)}"
    for a, b in zip(first, second, strict=True):
        for key in a.keys() - NOT_COMPARED:
            if a[key] != b.get(key):
                return f"step {a['step']}, {key}: {a[key]} against {b.get(key, 'nothing')}"
    return None


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
