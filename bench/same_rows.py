"""The proof of a refactoring: the same runs in two trees, every logged number compared.

    python bench/same_rows.py HEAD~1                      # that commit against the files as they are here
    python bench/same_rows.py v1 v2 --only=muon,ema       # two commits, some of the runs

Each run below takes 24 steps of a tiny model on made-up text, in float32 on the CPU unless it says otherwise. Rows of
metrics.jsonl must be equal to the last bit, wall times and memory aside. A second pass interrupts the first tree's run
after 12 steps and resumes its checkpoint in both trees, since old checkpoints must stay usable. Keys that only the
second tree logs are listed; a key that it no longer logs is a difference.
Exit status 1 where anything differs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from blockwise import UserError, exit_on_user_error
from configurator import ArgumentParser, close, did_you_mean

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


def main(argv):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("revisions", nargs="+", metavar="REV", help="the commit to compare with, and a second one")
    parser.add_argument("--only", help="names of runs, separated by commas (default: all)")
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(RUNS)
    for name in names:
        if name not in RUNS:
            near = did_you_mean(close(name, RUNS)) or f"; expected some of {', '.join(RUNS)}"
            raise UserError(f"--only={name}: no such run{near}")
    if len(args.revisions) > 2:
        raise UserError(f"{len(args.revisions)} revisions: expected one or two")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        write_text(scratch / "data" / "made_up")
        one, *other = args.revisions
        with tree_of(one, scratch / "tree1") as first, tree_of(other, scratch / "tree2") as second:
            return compare_trees(first, second, names, scratch)


def compare_trees(first, second, names, scratch):
    """Run everything in both trees, print a line for each comparison, and return the exit status."""
    trees = {"first": first, "second": second}
    for side, tree in trees.items():
        train(tree, scratch, {name: scratch / side / name for name in names})
    same = [report(name, scratch / "first" / name, scratch / "second" / name) for name in names]
    train(first, scratch, {name: scratch / "half" / name for name in names}, "--max_iters=12")
    for side, tree in trees.items():
        shutil.copytree(scratch / "half", scratch / f"{side}_resumed")
        train(tree, scratch, {name: scratch / f"{side}_resumed" / name for name in names}, "--init_from=resume")
    for name in names:
        outs = [scratch / f"{side}_resumed" / name for side in trees]
        same.append(report(f"{name}, resumed", *outs))
    different = same.count(False)
    print(f"{len(same)} comparisons, {different} different")
    return 1 if different else 0


@contextmanager
def tree_of(revision, folder):
    """The root of a checkout of `revision`, "" or [] for the files as they are here."""
    revision = "".join(revision)
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


def write_text(folder):
    """A data set of bytes: words with a pattern to learn."""
    words = b"the cat sat on a mat and the dog ate that hat ".split()
    rng = np.random.default_rng(0)
    text = b" ".join(words[i] for i in rng.integers(len(words), size=6000))
    folder.mkdir(parents=True)
    ids = np.frombuffer(text, np.uint8).astype("<u2")
    for split, part in (("train", ids[:18000]), ("val", ids[18000:20000])):
        part.tofile(folder / f"{split}.bin")
    # nanoGPT's format without a description would mean GPT-2's tokens
    splits = {split: {"tokens": n, "sha256": sha} for split, n, sha in hashes(folder)}
    meta = {"tokenizer": "bytes", "vocab_size": 256, "dtype": "uint16", "source": "made up", "splits": splits}
    (folder / "meta.json").write_text(json.dumps(meta))


def hashes(folder):
    from blockwise.files import sha256

    for split in ("train", "val"):
        path = folder / f"{split}.bin"
        yield split, path.stat().st_size // 2, sha256(path)


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
    jobs = []
    for name, out in outs.items():
        keys = [*COMMON, *RUNS[name].split(), *more, f"--data_dir={scratch / 'data'}", f"--out_dir={out}"]
        jobs.append((name, keys))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    single = [job for job in jobs if job[0] != "processes"]
    commands = [["-c", DRIVER, json.dumps(single)]] if single else []
    commands += [[*launcher, *keys] for name, keys in jobs if name == "processes"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"a run failed in {tree}: {' / '.join(lines[-2:])}")


def report(name, first, second):
    """Print how two runs compare; returns whether all that the first one logged is the same in the second."""
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (first, second)]
    difference = difference_of(*rows)
    added = sorted({key for row in rows[1] for key in row} - {key for row in rows[0] for key in row})
    note = f"; only in the second: {', '.join(added)}" if added else ""
    print(f"{name:<32}{difference or f'{len(rows[0])} rows are the same'}{note}", flush=True)
    return not difference


def difference_of(first, second):
    """The first difference between two lists of rows in a phrase, None if there is none."""
    if len(first) != len(second):
        return f"{len(first)} rows against {len(second)}"
    for one, other in zip(first, second, strict=True):
        for key in one.keys() - NOT_COMPARED:
            if one[key] != other.get(key):
                return f"step {one['step']}, {key}: {one[key]} against {other.get(key, 'nothing')}"
    return None


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
