"""measure.py from the command line's words: what it writes, on one process and two, however batches are cut."""

import hashlib
import json

import pytest
import torch
from conftest import finish, out_dir, run, start

import measure
from blockwise import UserError
from configurator import configure

LLAMA = ("--model_type=llama", "--keep_checkpoints=-1")
FEW = ("--batches=2", "--draws=2", "--batch_size=4", "--device=cpu")


@pytest.fixture
def trained(small):
    """Words for a finished run of a LLaMA with checkpoints at 0, 4 and 8."""
    run(*small, *LLAMA)
    return f"--out_dir={out_dir(small)}"


def sharpness(*words):
    config, _, _ = configure(measure.MeasureConfig, words, "")
    return measure.main(config)


def found(folder, kind="fisher", step=8):
    return json.loads((folder / f"sharpness_{kind}_{step:08d}.json").read_text())


def test_every_block_has_a_value_and_an_error(trained, small, capsys):
    assert sharpness(trained, *FEW) == 0
    result = found(out_dir(small))
    assert set(result["blocks"]) == {"Emb", "Head", "QK", "VO", "FFN", "Norm"}
    for one in result["blocks"].values():
        assert one["mean"] > one["error"] > 0 and one["parameters"] > 0
        assert one["geometric"] * one["positive"] <= one["mean"]
    assert {(one["layer"], one["block"]) for one in result["layers"]} >= {(0, "QK"), (1, "Norm"), (None, "Emb")}
    assert result["positions"] == 4 * 16 and result["step"] == 8
    assert "Norm" in capsys.readouterr().out
    assert (out_dir(small) / "sharpness_fisher.png").stat().st_size > 10_000


def test_all_checkpoints_draw_the_evolution(trained, small):
    sharpness(trained, *FEW, "--checkpoints=all")
    folder = out_dir(small)
    steps = [found(folder, step=step)["blocks"]["QK"]["mean"] for step in (0, 4, 8)]
    assert len(set(steps)) == 3
    assert (folder / "sharpness_fisher_evolution.png").is_file()


@pytest.mark.parametrize("words", [("--estimator=hessian",), ("--estimator=empirical",), ("--labels=data",)])
def test_the_cut_does_not_matter(trained, small, words):
    kind = {"--labels=data": "data_labels"}.get(words[0], words[0].split("=")[1])
    sharpness(trained, *FEW, *words)
    whole = found(out_dir(small), kind)
    sharpness(trained, *FEW, *words, "--micro_batch=1")
    cut = found(out_dir(small), kind)
    for block, one in whole["blocks"].items():
        assert cut["blocks"][block]["mean"] == pytest.approx(one["mean"], rel=1e-4)


def test_two_processes_see_the_same(trained, small):
    folder = out_dir(small)
    sharpness(trained, *FEW, "--batch_size=5")
    one = found(folder)
    status, _, err = finish(start("sharpness", trained, *FEW, "--batch_size=5", processes=2, script="measure.py"))
    assert status == 0, err
    two = found(folder)
    assert two["seconds"] != one["seconds"]
    for a, b in zip(one["layers"], two["layers"], strict=True):
        assert b["mean"] == pytest.approx(a["mean"], rel=1e-4), a
    for block in one["blocks"]:
        assert two["blocks"][block]["error"] == pytest.approx(one["blocks"][block]["error"], rel=1e-2)


def test_a_tied_matrix_and_its_two_uses(small):
    run(*small)
    folder, words = out_dir(small), f"--out_dir={out_dir(small)}"
    sharpness(words, *FEW)
    assert "Head" not in found(folder)["blocks"]
    sharpness(words, *FEW, "--split_tied=True")
    assert {"Emb", "Head"} <= set(found(folder)["blocks"])


def test_the_checkpoint_stays_as_it_is(trained, small):
    before = {path.name: path.read_bytes() for path in out_dir(small).iterdir() if path.is_file()}
    sharpness(trained, *FEW, "--estimator=hessian")
    assert all((out_dir(small) / name).read_bytes() == content for name, content in before.items())


def test_mistakes(trained, small, tmp_path):
    for words, expected in (
        ([f"--out_dir={tmp_path / 'none'}"], "no checkpoint in"),
        ([trained, "--batches=0"], "batches=0: expected at least 1"),
        ([trained, "--dataset=nowhere"], "no data set 'nowhere'"),
        ([trained, "--init_from=scratch"], "init_from=scratch: expected resume or hf:DIR_OR_ID"),
        ([trained, "--estimator=fischer"], "did you mean fisher"),
        ([trained, "--block_size=17"], "17 tokens where block_size is 16|block_size=17"),
    ):
        with pytest.raises((UserError, ValueError), match=expected):
            sharpness(*words)
    status, _, err = finish(start("sharpnes", trained, script="measure.py"))
    assert (status, err.count("\n")) == (2, 1) and "sharpness" in err


def test_a_curvature_that_is_not_finite(trained, small):
    path = out_dir(small) / "ckpt_00000008.pt"
    saved = torch.load(path, weights_only=True)
    saved["model"]["norm_f.weight"][0] = float("nan")
    torch.save(saved, path)
    manifest = path.with_suffix(".json")
    stated = json.loads(manifest.read_text())
    stated |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(stated))
    with pytest.raises(UserError, match="step 8, batch 0, draw 0: the curvature is not finite"):
        sharpness(trained, *FEW)
