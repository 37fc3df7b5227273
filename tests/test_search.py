"""A Sobol search as a study plans it: the same points for every arm, rungs, fresh seeds, ends, looks, and no bias.

Nothing runs: losses are made up and put where a study looks for results.
"""

import json
import math
import re

import numpy as np
import pytest

import compare
from blockwise import UserError
from blockwise.study import report
from blockwise.study.config import StudyConfig
from blockwise.study.plan import Study
from blockwise.study.summary import facts, judged

SPACE = {
    "learning_rate": [0.25, 4, "log"],
    "beta2": [0.9, 0.999, "log"],
    "warmup_iters": [2, 80],
    "lr_mult.Emb+Head": [1, 16, "log"],
    "lr_mult.Head": [0.25, 4, "log"],
}
KEYS = {
    "dataset": "nowhere", "model_type": "llama", "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 64,
    "block_size": 16, "batch_size": 2, "gradient_accumulation_steps": 1, "eval_iters": 2, "max_iters": 100,
    "lr_decay_iters": 100, "warmup_iters": 10, "eval_interval": 20, "min_lr": 0.0, "out_dir": "out/nowhere",
    "arms": {"adamw": "--blockwise=False", "ours": "--lr_rule=fitted"}, "floors": {"floor 0": ""},
    "learning_rates": {"adamw": [4e-3], "ours": [1e-3]}, "search": "sobol", "space": SPACE, "points": 12,
    "rungs": [[0.25, 2, 3], [1.0, 1, 2], [1.0, 2, 1]], "seeds": [1, 2, 3, 4],
}  # fmt: skip


def play(loss, **keys):
    """(a study that is done, its runs in order) with loss(run) as what each run ends at, inf: it diverged."""
    study = Study(StudyConfig(**{**KEYS, **keys}), compare.configure)
    return study, fill(study, loss)


def fill(study, loss):
    """Results of all the runs that a study asks for, until it has what it needs; returns these runs."""
    order = []
    while todo := study.todo():
        for run in todo:
            value = loss(run)
            study.results[run.folder.name] = {
                "status": "finished" if math.isfinite(value) else "diverged", "test": None, "seconds": 1.0, "spikes": 0,
                "loss": value if math.isfinite(value) else None, "curve": [(0, 6.0), (run.config.max_iters, value)],
            }  # fmt: skip
            order.append(run)
    return order


def bowl(run):
    """Lowest at 2e-3, at a beta2 near 0.99 and in the middle of warmup; twice as good with all steps."""
    c, steps = run.config, run.config.max_iters
    valley = math.log2(c.learning_rate / 2e-3) ** 2 + math.log2((1 - c.beta2) / 0.01) ** 2
    return 3.0 + 0.1 * valley + (c.warmup_iters / steps - 0.4) ** 2 - 0.5 * (steps == 100) + 1e-3 * (c.seed % 3)


def test_every_arm_has_the_same_points():
    """By number and by quantile: equal warmup and beta2, rates at equal factors of the own centre, own multipliers."""
    _, order = play(bowl)
    short = {arm: [run for run in order if run.arm == arm and run.budget == 0.25] for arm in ("adamw", "ours")}
    assert [len(runs) for runs in short.values()] == [24, 24]
    for a, b in zip(*short.values(), strict=True):
        assert (a.config.beta2, a.config.warmup_iters, a.seed) == (b.config.beta2, b.config.warmup_iters, b.seed)
        assert a.rate / 4e-3 == pytest.approx(b.rate / 1e-3, rel=1e-4)
        assert set(a.config.resolved().lr_mult.values()) == {1.0}  # nothing to search where all rates are one
        assert (a.config.max_iters, a.config.lr_decay_iters, a.config.eval_interval) == (25, 25, 5)
        emb, head = (b.config.lr_mult[block] for block in ("Emb", "Head"))
        factor, extra = b.values[b.keys.index("lr_mult.Emb+Head")], b.values[b.keys.index("lr_mult.Head")]
        assert emb == pytest.approx(12 * factor, rel=1e-4) and head == pytest.approx(12 * factor * extra, rel=1e-4)
        assert b.config.lr_mult["QK"] == 4 and b.config.lr_mult["Norm"] == 1
    assert {run.config.warmup_iters for run in short["ours"]} <= set(range(1, 21))  # a quarter of 2 to 80


def test_the_seeds_of_the_verdict_took_no_part_in_the_search():
    study, order = play(bowl)
    searched = {run.seed for run in order if run.seed not in (1, 2, 3, 4)}
    assert searched == {1001, 1002, 1003, 1004, 1005}
    final = [run for run in order if run.seed in (1, 2, 3, 4)]
    assert len(final) == 8 and {run.budget for run in final} == {1.0}
    for arm in ("adamw", "ours"):
        (best,) = study.searched("floor 0", arm)[2]
        assert {run.point for run in final if run.arm == arm} == {best}
        scores = {}
        for run in order:
            if run.arm == arm and run.seed == 1003:
                scores[run.point] = bowl(run)
        assert len(scores) == 3 and best in sorted(scores, key=scores.get)[:2]
    with pytest.raises(UserError, match="search_seed=3: expected none of the search's"):
        play(bowl, search_seed=3)
    found = judged(facts(study))
    assert "none of its seeds is in the verdict" in report.report(found, "x")
    _, order = play(lambda run: 3.0, search="coordinate", space={}, search_seed=9, untuned=["adamw", "ours"])
    assert {run.seed for run in order} == {9, 1, 2, 3, 4}


def test_a_search_by_coordinates_may_tune_multipliers():
    def loss(run):
        return 3 + math.log2(run.config.lr_mult["Emb"] / 48) ** 2 if run.arm == "ours" else 3.0

    tune = {"lr_mult.Emb+Head": [1, 4, 16]}
    study, _ = play(loss, search="coordinate", space={}, tune=tune)
    (best,) = study.searched("floor 0", "ours")[2]
    assert best[1:] == (4,) and not study.keys("floor 0", "adamw")
    ((run,),) = study.at_best("floor 0", "ours", [1])
    assert (run.config.lr_mult["Emb"], run.config.lr_mult["Head"], run.config.lr_mult["QK"]) == (48, 48, 4)


def test_ends_are_named():
    """A best within 10 % of an end of its range, in the report and the verdicts; by coordinates an end of the list."""
    study, _ = play(lambda run: 3 + 10 * run.config.beta2 + math.log2(run.rate / 4e-3) ** 2 * 1e-3, points=16)
    found = judged(facts(study))
    beta2 = found["places"]["floor 0"]["adamw"]["tuned"]["beta2"]
    assert math.log(0.1 / (1 - beta2)) / math.log(100) < 0.1
    (text,) = [line for line in found["verdicts"] if "near an end of its range" in line]
    assert f"adamw (floor 0, beta2 {beta2:g}" in text
    assert f"(near an end: beta2 {beta2:g}" in report.report(found, "x")
    tune = {"warmup_iters": [10, 50], "weight_decay": [0.0, 0.1, 0.5]}
    keys = {"search": "coordinate", "space": {}, "tune": tune, "weight_decay": 0.1}

    def loss(run):
        centre = KEYS["learning_rates"][run.arm][0]
        return 3 + run.config.weight_decay - run.config.warmup_iters / 100 + math.log2(run.rate / centre) ** 2

    study, _ = play(loss, **keys)
    assert judged(facts(study))["places"]["floor 0"]["ours"]["ends"] == ["warmup_iters 50"]  # below 0 there is nothing


def test_a_run_that_diverges_is_a_result_of_the_search():
    study, order = play(lambda run: math.inf if run.rate > 4e-3 and run.seed % 2 else bowl(run))
    assert all(study.searched("floor 0", arm)[2][0][0] <= 4e-3 for arm in ("adamw", "ours"))
    assert len([run for run in order if run.budget == 0.25]) == 48  # it was not run again
    assert list(judged(facts(study))["places"]["floor 0"]["adamw"]["best_of"]) == [1, 2, 4, 8, 12]


def test_a_look_ends_what_is_clear():
    """Of two arms one is clearly lower after 4 seeds; the other, and the baseline, have all 16."""
    noise = np.random.default_rng(3).normal(size=(17, 3))
    arms = {"adamw": "--blockwise=False", "lower": "--lr_rule=fitted", "same": "--lr_rule=nanochat"}
    rates = {arm: [1e-3] for arm in arms}

    def loss(run):
        i = list(arms).index(run.arm)
        return 3 - 0.5 * (run.arm == "lower") + (0.05 if i == 2 else 0.01) * noise[run.seed][i]

    keys = {"arms": arms, "learning_rates": rates, "untuned": list(arms), "seeds": list(range(1, 17))}
    study, _ = play(loss, looks=[4, 8, 16], **keys)
    assert {arm: len(seeds) for arm, seeds in study.seeds_of("floor 0").items()} == {
        "adamw": 16, "lower": 4, "same": 16,
    }  # fmt: skip
    tests = {arm: one.get("test") for arm, one in judged(facts(study))["places"]["floor 0"].items()}
    assert tests["lower"]["word"] == "lower by more than 0.01" and tests["lower"]["alpha"] < 0.001
    assert tests["same"]["word"] == "undecided" and 0.04 < tests["same"]["alpha"] < 0.05
    _, order = play(loss, **keys)
    assert len(order) == 3 * 16


def test_a_lead_must_hold_against_the_runner_up():
    """What the last rung keeps runs with the verdict's seeds; here ours is ahead of one of AdamW's two points only."""
    worse = {}

    def loss(run):
        value = bowl(run) + 1e-3 * (run.seed * (5 if run.arm == "ours" else 3) % 7)
        if run.arm == "adamw" and run.seed < 1000:  # the search was unlucky: its first choice ends worse
            value = 3.2 if worse.setdefault(run.seed, run.point) == run.point else 2.9
        return value if run.arm == "adamw" or run.seed > 1000 else 3.0 + 1e-3 * run.seed

    study, order = play(loss, rungs=[[0.25, 2, 3], [1.0, 1, 2]])
    assert len([run for run in order if run.seed < 1000]) == 2 * 2 * 4
    found = judged(facts(study))
    arms, text = found["places"]["floor 0"], report.report(found, "x")
    test, (runner_up,) = arms["ours"]["test"], arms["adamw"]["runners_up"]
    assert test["high"] < -0.1 and (test["word"], test["p"]) == ("undecided", 1)
    assert runner_up["losses"] == {str(seed): 2.9 for seed in (1, 2, 3, 4)} and runner_up["point"][0] != worse[1][0]
    assert f"Runner-up: {runner_up['point'][0]:g}, " in text and ", mean loss 2.9000" in text
    assert "to the other's runner-up +0.1025" in text and "A lead must hold against each" in text
    assert judged(json.loads(json.dumps(facts(study)))) == found


def test_speedup_by_rungs():
    """AdamW gains 0.4 nats from a quarter of the steps to all; 0.2 less is worth a factor of two."""

    def loss(run):
        return 3 - 0.4 * (run.budget == 1) - 0.2 * (run.arm == "ours") + 1e-4 * (run.seed * (run.arm == "ours") % 3)

    study, _ = play(loss)
    speed = judged(facts(study))["places"]["floor 0"]["ours"]["speedup"]
    assert speed["ratio"] == pytest.approx(2, rel=0.01) and speed["low"] < speed["ratio"] < speed["high"]


def test_a_report_is_made_again_from_its_json(tmp_path):
    """Word for word from study.json alone, also of a study whose JSON has none of the later keys."""
    study, _ = play(bowl, out_dir=str(tmp_path / "out"))
    study.folder.mkdir()
    report.write(study)
    first = {name: (study.folder / name).read_text() for name in ("report.md", "study.json")}
    assert len(re.findall(r'^  {"run": .*}', first["study.json"], re.MULTILINE)) == len(study.runs())
    assert compare.main(["--report", str(study.folder)]) == 0
    assert {name: (study.folder / name).read_text() for name in first} == first
    old = json.loads(first["study.json"])
    for key in ("space", "search", "points", "rungs", "margin", "looks", "search_seed"):
        del old["study"][key]
    for one in old["places"]["floor 0"].values():
        for key in ("ends", "bad_starts", "best_of", "tuned", "search", "spikes"):
            del one[key]
    (study.folder / "study.json").write_text(json.dumps(old))
    assert compare.main(["--report", str(study.folder)]) == 0
    assert "ours against adamw: " in (study.folder / "report.md").read_text()
    (study.folder / "study.json").write_text("[]")
    with pytest.raises(UserError, match="expected the folder of a finished study"):
        compare.main(["--report", str(study.folder)])


@pytest.mark.parametrize(
    "keys,message",
    [
        ({"space": {}}, "space=.*: expected at least one key"),
        ({"space": {"beta2": [0.9]}}, r"space.beta2=\[0.9\]: expected \[LOW, HIGH\]"),
        ({"space": {"beta2": [0.99, 0.9]}}, "LOW below HIGH"),
        ({"space": {"weight_decay": [0, 0.1, "log"]}}, "space.weight_decay=.*: expected"),
        ({"space": {"optimizer": [0, 1]}}, "space has 'optimizer': expected a key of train.py that is a number"),
        ({"space": {"lr_mult.Emb+Haed": [1, 2]}}, "space has 'lr_mult.Emb.Haed'"),
        ({"tune": {"beta2": [0.9, 0.99]}}, "tune=.*: expected none with search=sobol"),
        ({"rungs": [[0.5, 1]]}, "rungs=.*: expected .*points kept"),
        ({"rungs": [[0.5, 1, 13]]}, "rungs=.*of ever fewer points"),
        ({"rungs": []}, "rungs="),
        ({"looks": [2, 8]}, "looks=.*: expected rising numbers from 2 to the 4 of seeds"),
        ({"search": "coordinate"}, "space=.*: expected none with search=coordinate"),
        ({"twice": True}, "twice=True: expected False with search=sobol"),
    ],
)
def test_what_cannot_be_searched(keys, message):
    with pytest.raises(UserError, match=message):
        Study(StudyConfig(**{**KEYS, **keys}), compare.configure)


def test_a_search_of_which_a_run_failed_is_reported():
    """Nothing is known of its best, nor of the luck of its points."""
    study, runs = play(bowl)
    study.results[runs[0].folder.name] = {"status": "failed", "loss": None, "spikes": None, "seconds": None}
    found = judged(facts(study))
    arm = found["places"]["floor 0"][runs[0].arm]
    assert arm["best"] is None and arm["best_of"] == {}
    assert "not complete" in found["verdicts"][0] and "not complete" in report.report(found, "a study")
