"""lr_mult=auto: the rule, the rise, runs that are the same until then, resumed ones, what is suggested, mistakes."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, losses, metrics, out_dir, run
from helpers import Stop, same

import measure
import plot
from blockwise import NotFinite, UserError, lr_multipliers
from blockwise.blocks import LR_MULT
from blockwise.checkpoint import load_checkpoint
from blockwise.lr_multipliers import as_arguments, multipliers, multipliers_at
from blockwise.settings import TrainConfig
from blockwise.training import LiveCurvature, summary
from configurator import configure

# Measured in step 3, at their full size from step 6 on; the probes of a few sequences
AUTO = ("--lr_mult=auto", "--auto_mult_step=3", "--auto_mult_power=0.3", "--auto_mult_max=4")
FOUND = {"Norm": 8.0, "FFN": 4.0, "QK": 0.008, "Emb": 16.0}


@pytest.fixture(autouse=True, scope="module")
def few_probes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lr_multipliers, "PROBES", 6)
        yield


@pytest.fixture(scope="module")
def straight(few_probes, data_dir, tmp_path_factory):
    """Words of a finished run of `small` with AUTO, to be read only."""
    words = (*SMALL, *AUTO, f"--data_dir={data_dir}", f"--out_dir={tmp_path_factory.mktemp('auto')}")
    run(*words)
    return words


def test_the_rule():
    found = multipliers(FOUND, 0.5, 10, 0)
    assert found == pytest.approx({"Norm": 1, "FFN": 2**0.5, "QK": 10, "Emb": 1}) and found["QK"] == 10
    assert multipliers(FOUND, 1, 1e4, 0) == pytest.approx({"Norm": 1, "FFN": 2, "QK": 1000, "Emb": 1})
    assert set(multipliers(FOUND, 3, 1, 0).values()) == {1.0}
    rising = [multipliers({"Norm": 1.0, "VO": 10.0**-k}, 0.7, 1e9, 0)["VO"] for k in range(-2, 8)]
    assert rising == sorted(rising) and rising[2] == 1 and len(set(rising[2:])) == 8
    assert multipliers({"Norm": 1e300, "VO": 1e-300}, 50, 8, 0)["VO"] == 8


def test_the_papers_multipliers():
    """S_Norm / S of 36, 21, 11 and 5.7 on its LLaMA of 0.25B; its 10, 8, 6, 4 are these to powers of 0.64 to 0.80."""
    ratios = {"Norm": 1, "Emb": 36, "QK": 21, "FFN": 11, "VO": 5.7}
    found = multipliers({block: 1 / ratio for block, ratio in ratios.items()}, 0.7, 10, 0)
    assert found == pytest.approx({"Norm": 1, "Emb": 10, "QK": 8.42, "FFN": 5.36, "VO": 3.38}, abs=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_multiplier_follows(value):
    with pytest.raises(UserError, match=r"step 7: cannot set multipliers: sharpness of QK is \S+"):
        multipliers({"Norm": 1.0, "QK": value}, 0.7, 10, 7)


def test_they_rise_linearly():
    config = SimpleNamespace(lr_mult="auto", auto_mult_step=10)
    assert set(multipliers_at(config, 10, None).values()) == {1.0}
    rates = {step: multipliers_at(config, step, {"QK": 5.0, "Norm": 1.0}) for step in (10, 13, 15, 20, 21, 10**6)}
    assert [rates[step]["QK"] for step in rates] == pytest.approx([1, 2.2, 3, 5, 5, 5])
    assert all(one["Norm"] == 1 for one in rates.values())
    assert multipliers_at(SimpleNamespace(lr_mult=LR_MULT), 3, None) == LR_MULT


RUNS = (("--optimizer=muon", "--model_type=llama"), ("--optimizer=adam_mini", "--dtype=bfloat16"))


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_a_plain_run_until_then(small, tmp_path, words):
    """Bitwise, with dropout and accumulation; the row of the step says what was found, and the rates follow it."""
    plain = (*small, *words, "--blockwise=False", f"--out_dir={tmp_path / 'plain'}")
    run(*plain)
    run(*small, *words, *AUTO)
    rows, base = metrics(small), metrics(plain)
    assert all(losses(small)[step] == losses(plain)[step] for step in range(4))
    assert losses(small)[8] != losses(plain)[8]
    blocks = [key.removeprefix("lr/") for key in rows[0] if key.startswith("lr/")]
    found = {block: rows[3][f"lr_mult/{block}"] for block in blocks}
    assert found == multipliers({block: rows[3][f"sharpness/{block}"] for block in blocks}, 0.3, 4, 3)
    assert found["Norm"] == 1 and max(found.values()) > 1
    assert not any(key.startswith(("lr_mult", "sharpness")) for step in rows if step != 3 for key in rows[step])
    peak, floor = 1e-3, 6e-5
    for step, share in ((2, 0), (3, 0), (4, 1 / 3), (5, 2 / 3), (6, 1), (7, 1)):
        cosine = (base[step]["lr/Norm"] - floor) / (peak - floor)
        for block, mult in found.items():
            expected = floor + cosine * (peak * (1 + share * (mult - 1)) - floor)
            assert rows[step][f"lr/{block}"] == pytest.approx(expected), (step, block)
    saved = load_checkpoint(out_dir(small) / "ckpt_00000008.pt")
    assert saved["auto_mult"] == found and saved["config"]["lr_mult"] == "auto"


def test_blockwise_false_wins(small, tmp_path):
    off = (*small, f"--out_dir={tmp_path / 'off'}", "--blockwise=False")
    run(*off)
    run(*small, *AUTO, "--blockwise=False", "--auto_mult_step=100")
    assert losses(small) == losses(off)
    config = json.loads((out_dir(small) / "config.json").read_text())
    assert set(config["lr_mult"].values()) == {1.0} and config["auto_mult_step"] is None
    assert not any("sharpness/QK" in row for row in metrics(small).values())


def test_resume_is_exact_from_every_step(small, tmp_path, capsys, monkeypatch):
    """Before the measurement, at it, while they rise and after; measured once, with a layer put to work meanwhile."""
    grow = ("--n_layer=3", "--arch_warmup=True", "--arch_warmup_start=0.3", "--arch_warmup_groups=2")
    grow = (*grow, "--arch_warmup_interval=3", "--sharpness_interval=3")  # layers come in steps 2 and 5
    words = (*small, *AUTO, *grow, "--eval_interval=1", "--keep_checkpoints=-1")
    assert run(*words) == 0
    straight = load_checkpoint(out_dir(words) / "ckpt_00000008.pt")
    told = [line for line in capsys.readouterr().out.splitlines() if "lr_mult=auto" in line]
    assert len(told) == 2 and told[1].startswith("step 3: lr_mult=auto: Emb ")
    for step in (2, 3, 5):
        if step == 5:  # from here on nothing is measured any more
            monkeypatch.setattr(lr_multipliers.LRMultipliers, "measure", None)
        again = (*words, f"--out_dir={tmp_path / str(step)}", "--init_from=resume")
        shutil.copytree(out_dir(words), out_dir(again))
        for path in out_dir(again).glob("ckpt_*"):
            if int(path.stem[5:]) > step:
                path.unlink()
        assert run(*again, "--auto_mult_step=5", "--auto_mult_power=2") == 0
        out = capsys.readouterr().out
        for key, value in (("auto_mult_step", 3), ("auto_mult_power", 0.3)):
            assert f"{key} keeps the checkpoint's value {value}" in out
        assert losses(again) == losses(words)
        for step, row in metrics(words).items():
            for key in ("sharpness/QK", "lr_mult/QK", "lr/QK"):
                assert metrics(again)[step].get(key) == row.get(key)
        resumed = load_checkpoint(out_dir(again) / "ckpt_00000008.pt")
        assert all(same(resumed[part], straight[part]) for part in ("model", "optimizer", "auto_mult"))


def test_a_stop_between_two_probes(small, straight, monkeypatch):
    """It does not wait for the others: the run saves before them, and the next one measures afresh."""
    words = (*small, *AUTO)
    probes, measure = [], LiveCurvature.fisher
    monkeypatch.setattr(LiveCurvature, "fisher", lambda self, *args: probes.append(1) or measure(self, *args))
    stop = type("Stop", (), {"signal": "SIGTERM", "__bool__": lambda self: len(probes) == 2})()
    assert run(*words, stop=stop) == 0 and len(probes) == 2
    saved = load_checkpoint(out_dir(words) / "ckpt_00000003.pt")
    assert saved["auto_mult"] is None and not (out_dir(words) / "ckpt_00000004.json").exists()
    assert run(*words, "--init_from=resume") == 0 and len(probes) == 8
    assert losses(words) == losses(straight) and metrics(words)[7]["lr/QK"] == metrics(straight)[7]["lr/QK"]


def test_the_step_is_the_runs(small):
    """2% of the steps that the run began with, also where it goes on for longer."""
    resolved = configure(TrainConfig, ["--lr_mult=auto", "--max_iters=1050"], "")[0].resolved()
    assert (resolved.auto_mult_step, resolved.resolved().auto_mult_step) == (21, 21)
    run(*small, "--lr_mult=auto", "--max_iters=120", stop=Stop(small, 0))
    run(*small, "--lr_mult=auto", "--max_iters=400", "--init_from=resume", stop=Stop(small, 2))
    assert "lr_mult/QK" in metrics(small)[2]


def test_a_resume_between_auto_and_numbers(small, capsys):
    words = (*small, "--log_interval=1")
    run(*words, *AUTO, "--max_iters=5")
    run(*words, "--init_from=resume", "--max_iters=6", "--lr_mult.QK=3")
    assert "lr_mult was auto, is {'Emb': 10.0, 'QK': 3.0" in capsys.readouterr().out
    row = metrics(words)[5]
    assert row["lr/QK"] == pytest.approx(3 * row["lr/Norm"], rel=0.2)  # the floor is not scaled
    assert load_checkpoint(out_dir(words) / "ckpt_00000006.pt")["auto_mult"] is None
    with pytest.raises(UserError, match="=3: expected 6 to 7: the run continues from step 6; or numbers for lr_mult"):
        run(*words, *AUTO, "--init_from=resume")
    assert run(*words, *AUTO, "--init_from=resume", "--auto_mult_step=7", "--log_interval=1") == 0
    assert "lr_mult/QK" in metrics(words)[7] and metrics(words)[6]["lr/QK"] == metrics(words)[6]["lr/Norm"]
    run(*words, *AUTO, "--max_iters=5", stop=Stop(words, 0))
    with pytest.raises(UserError, match="auto_mult_step=3: expected 2 to 2"):
        run(*words, "--lr_mult=auto", "--init_from=resume", "--max_iters=3", "--auto_mult_step=2")


def test_suggested_is_what_training_sets(small, capsys, monkeypatch):
    """On the same windows and labels, while a layer is locked; ready for the command line."""
    words = (*small, "--max_iters=4", "--n_layer=3", "--arch_warmup=True", "--arch_warmup_groups=1", "--warmup_iters=3")
    words = (*words, "--lr_mult=auto", "--auto_mult_step=2", "--auto_mult_power=0.1")
    run(*words, "--eval_interval=2", "--keep_checkpoints=-1")
    row, folder = metrics(words)[2], out_dir(words)
    monkeypatch.setattr(measure, "draw", lambda _: None)  # the figures
    again = [f"--out_dir={folder}", "--batches=6", "--draws=1", "--batch_size=1", "--seed=1337", "--checkpoints=all"]
    suggest = [*again, "--suggest", "--auto_mult_power=0.1"]
    config, _, flags = configure(measure.SharpnessConfig, suggest, "", measure.SharpnessConfig.flags)
    capsys.readouterr()
    measure.main(config, flags)
    result = json.loads((folder / "sharpness_fisher_00000002.json").read_text())
    for block, one in result["blocks"].items():
        assert one["mean"] == pytest.approx(row[f"sharpness/{block}"], rel=1e-5), block
    found = result["suggested"]
    expected = {block: row[f"lr_mult/{block}"] for block in ("Emb", "QK", "VO", "FFN", "Norm")}
    assert found == {"power": 0.1, "max": 10, "lr_mult": pytest.approx(expected, rel=1e-5)}
    assert 1 < max(expected.values()) < 10
    line = as_arguments(found["lr_mult"])
    assert line in capsys.readouterr().out.splitlines()
    parsed = configure(TrainConfig, line.split(), "")[0].lr_mult
    assert parsed == pytest.approx({**expected, "Head": LR_MULT["Head"]}, rel=5e-3)
    measure.main(configure(measure.SharpnessConfig, again, "")[0])
    assert "suggested" not in json.loads((folder / "sharpness_fisher_00000002.json").read_text())
    for wrong, said in (
        ("--auto_mult_max=0", "auto_mult_max=0.0: expected at least 1"),
        ("--auto_mult_power=0", "auto_mult_power=0.0: expected above 0"),
    ):
        with pytest.raises(UserError, match=said):
            measure.main(configure(measure.SharpnessConfig, [*again, wrong], "")[0], flags)


def test_what_else_meets_the_word(small, straight, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "StepMemory", None)  # it takes seconds
    assert run(*small, *AUTO, "--dry_run") == 0
    assert "lr_mult=auto: every multiplier is 1 until they are measured in step 3" in capsys.readouterr().out
    assert run(*small, *AUTO, "--print_config") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["lr_mult"], printed["auto_mult_step"]) == ("auto", 3)
    with pytest.raises(UserError, match="lr_mult=auto: expected numbers"):
        plot.main(["lr", "--lr_mult=auto", f"--out={tmp_path / 'lr.png'}"])
    monkeypatch.setattr(measure, "draw", lambda _: None)
    words = [f"--out_dir={out_dir(straight)}", "--products=3", "--batch_size=1", "--checkpoints=all"]
    measure.main(configure(measure.CurvatureConfig, words, "")[0])
    rates = json.loads((out_dir(straight) / "curvature_00000004.json").read_text())["preconditioned"]["lr"]
    assert rates == {block: metrics(straight)[4][f"lr/{block}"] for block in rates} and rates["QK"] > rates["Norm"]


BAD = {
    "auto_mult_step=8: expected below max_iters=8": ("--auto_mult_step=8",),
    "auto_mult_step=0: expected at least 1": ("--auto_mult_step=0",),
    "auto_mult_step=1: expected below max_iters=1": ("--max_iters=1", "--auto_mult_step=None"),
    "auto_mult_max=0.5: expected at least 1": ("--auto_mult_max=0.5",),
    "auto_mult_power=0.0: expected above 0": ("--auto_mult_power=0",),
    "--lr_mult.QK: lr_mult=auto has no entries": ("--lr_mult.QK=6",),
    "expected a dict of float or 'auto', got automatic; did you mean auto": ("--lr_mult=automatic",),
}


@pytest.mark.parametrize("words", BAD.values(), ids=BAD.keys())
def test_bad_input(small, words, request):
    with pytest.raises(UserError, match=request.node.callspec.id):
        run(*small, *AUTO, *words)
    assert not (out_dir(small) / "metrics.jsonl").exists()


def test_a_model_that_has_blown_up(small, monkeypatch):
    """Its sharpness is no number: the run ends with one line, and its checkpoints stay."""
    sharpness = lr_multipliers.multipliers
    nan = lambda found, *rule: sharpness({**found, "QK": torch.nan}, *rule)  # noqa: E731
    monkeypatch.setattr(lr_multipliers, "multipliers", nan)
    with pytest.raises(NotFinite, match="step 5: cannot set multipliers: sharpness of QK is nan") as stopped:
        run(*small, *AUTO, "--auto_mult_step=5")
    assert stopped.value.status == 3
    assert (out_dir(small) / "ckpt_00000004.json").exists() and list(metrics(small)) == [0, 1, 2, 3, 4]
