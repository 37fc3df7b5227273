"""What several test files need: sizes that fit a test, the pages, studies that are finished."""

import json

import numpy as np
from conftest import ROOT

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


def study_of_lines(folder, conditions=("",), best=(8e-3, 3e-3)):
    """A finished study whose losses are parabolas: the tables' best rate, and the matrices' by their init's number."""
    folder.mkdir(exist_ok=True)
    arms = {"adamw": 5.0}
    for name, at in zip(("init 0.02", "init 1", "tables"), (best[0], 1.0, best[1]), strict=True):
        for rate in (1, 4, 16):
            arms[f"{name}, rate {rate}e-3"] = 4 + 0.1 * np.log(rate * 1e-3 / at) ** 2
    places = {name: {arm: {"mean": mean} for arm, mean in arms.items()} for name in conditions}
    (folder / "study.json").write_text(json.dumps({"places": places, "study": {"baseline": "adamw"}}))
