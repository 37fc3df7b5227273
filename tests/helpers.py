"""What several test files need: sizes, models and requests that fit a test, the pages, studies that are finished."""

import json
import runpy
import subprocess
import sys
from contextlib import nullcontext

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import ROOT, out_dir

import blockwise
from model import ModelConfig, Transformer

TINY = (
    "--device=cpu", "--n_layer=1", "--n_head=2", "--n_kv_head=2", "--n_embd=16", "--n_inner=32", "--block_size=16",
    "--batch_size=2",
)  # fmt: skip
SHORT = ("--gradient_accumulation_steps=2", "--eval_iters=2", "--max_iters=2", "--dataset=tiny", "--wandb_log=False")
PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def study_of_draws(folder, n=40):
    """A finished study whose losses are parabolas about known rates; S_block is chosen so that p = 0.5 fits exactly."""
    wanted = {"Emb": 8e-3, "QK": 2e-3, "Norm": 5e-4}
    random, arms, places, runs = np.random.default_rng(0), {"adamw": ""}, {"adamw": {"mean": 9.0}}, []
    folder.mkdir(exist_ok=True)
    for i in range(n):
        factors = {block: np.exp(random.uniform(-1, 1)) for block in wanted}
        arm, run = f"draw {i:02}", folder / str(i)
        words = [f"--lr_mult.{block}={wanted[block] * factor / 1e-3}" for block, factor in factors.items()]
        arms[arm] = " ".join([*words, f"--warmup_iters={10 + i}"])
        places[arm] = {"mean": 4 + sum(0.3 * np.log(f) ** 2 for f in factors.values()), "best": 1e-3}
        runs.append({"run": f"{arm} at 0.001, seed 1 (a floor)", "folder": str(run)})
        run.mkdir()
        sharpness = {f"sharpness/{block}": (5e-4 / rate) ** 2 for block, rate in wanted.items()}
        sharpness["sharpness/QK"] /= factors["QK"]  # the faster, the flatter
        rows = [{"step": step, **sharpness} for step in (0, 50)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 100}]))
    found = {"places": {"a floor": places}, "study": {"arms": arms, "baseline": "adamw"}, "runs": runs}
    (folder / "study.json").write_text(json.dumps(found))


def prepare(name, *words, **options):
    """The script in a process; returns (exit status, stderr)."""
    command = [sys.executable, f"data/{name}/prepare.py", *map(str, words)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    return answer.returncode, answer.stderr


def prepare_here(monkeypatch, name, *words):
    """The same in this process, as far as it goes without workers; raises UserError."""
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
    monkeypatch.setattr(blockwise, "exit_on_user_error", nullcontext)
    runpy.run_path(str(ROOT / f"data/{name}/prepare.py"), run_name="__main__")


def assert_refused(answer, *parts):
    """A process's answer is one line and exit status 2."""
    status, error = answer
    assert status == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n"), error
    assert all(part in error for part in parts), error


# Models


KINDS = {
    "gpt2": dict(model_type="gpt2", tie_weights=True),
    "llama": dict(model_type="llama", tie_weights=False),
    "grouped": dict(model_type="llama", tie_weights=True, n_kv_head=2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_config(**options):
    small = dict(
        vocab_size=61, block_size=16, n_layer=2, n_head=4, n_kv_head=4, n_embd=32, n_inner=48, bias=False, dropout=0.0,
        rope_theta=100.0, norm_eps=1e-3,
    )  # fmt: skip
    return ModelConfig(**{**small, **options})


def randomised(model):
    """Every parameter random, norms and biases too, in float64."""
    torch.manual_seed(0)
    model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape) + (p.dim() == 1))
    return model


def make(kind, **options):
    return randomised(Transformer(make_config(**KINDS[kind], **options)))


def batch(B=3, T=12, vocab_size=61):
    tokens = torch.randint(vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


# Runs


def same(a, b):
    """Whether nested data is equal, tensors to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


class Stop:
    """A request to stop that comes in the step after this one."""

    signal = "SIGTERM"

    def __init__(self, words, step):
        self.path, self.text = out_dir(words) / "metrics.jsonl", f'"step": {step},'

    def __bool__(self):
        return self.path.exists() and self.text in self.path.read_text()


SCRIPT = """
import json, os, runpy, sys
sys.path.insert(0, {root!r})
import torch
found = {{}}
{patch}
sys.argv = ["train.py"] + sys.argv[1:]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    if os.environ["RANK"] == "0":
        open({path!r}, "w").write(json.dumps(found))
"""


def scripted(tmp_path, patch):
    """Paths of a script and of what it found."""
    script, found = tmp_path / "script.py", tmp_path / "found.json"
    script.write_text(SCRIPT.format(root=str(ROOT), patch=patch, path=str(found)))
    return str(script), found


# Figures


def coloured(path):
    """How many pixels of a figure are not grey: of an empty one none is, whatever its size in bytes."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return int((np.ptp(pixels, axis=-1) > 0.2).sum())
