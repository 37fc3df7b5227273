"""ema_decay: the average by hand, its evaluation, an exact resume, and the commands that take it."""

import json
import shutil

import pytest
import torch
from conftest import SMALL, losses, metrics, out_dir, run
from safetensors.torch import load_file

import export
import measure
import sample
from blockwise import UserError
from blockwise.checkpoint import load_checkpoint, weights_of
from blockwise.training.ema import EMA
from model import Transformer

DECAY = "--ema_decay=0.9"


@pytest.fixture(scope="module")
def averaged(data_dir, tmp_path_factory):
    """Words of a finished run with an average: only to be read."""
    words = (*SMALL, DECAY, f"--data_dir={data_dir}", f"--out_dir={tmp_path_factory.mktemp('averaged')}")
    run(*words)
    return words


def newest(words):
    return load_checkpoint(sorted(out_dir(words).glob("ckpt_*.pt"))[-1])


def test_the_average_by_hand():
    """d = min(decay, (1 + n) / (10 + n)): 0.1, then 2/11, and never above the decay."""
    model = torch.nn.Linear(1, 1, bias=False)
    values = [1.0, 3.0, -2.0, 5.0]
    with torch.no_grad():
        model.weight.fill_(values[0])
        ema, expected = EMA(model, 0.2, None), values[0]
        for n, value in enumerate(values[1:]):
            model.weight.fill_(value)
            ema.update()
            d = min(0.2, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * value
    assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == values[-1]


def test_off_is_absent_and_on_changes_nothing_else(averaged, finished_run):
    off, rows = (f"--out_dir={finished_run}",), metrics(averaged)
    assert losses(averaged) == losses(off)
    assert not any("val/loss_ema" in row for row in metrics(off).values()) and newest(off)["ema"] is None
    assert rows[0]["val/loss_ema"] == rows[0]["val/loss"] and rows[8]["val/loss_ema"] != rows[8]["val/loss"]
    assert all(("val/loss_ema" in row) == ("val/loss" in row) for row in rows.values())


def test_what_is_evaluated_is_the_average(averaged, small):
    """By a model that is built from the checkpoint's average and evaluated as the run's own weights."""
    shutil.copytree(out_dir(averaged), out_dir(small))
    checkpoint, row = newest(small), metrics(small)[8]
    model, ours = Transformer.from_checkpoint(checkpoint, ema=True), Transformer.from_checkpoint(checkpoint)
    assert not torch.equal(model.tok_emb.weight, ours.tok_emb.weight)
    assert weights_of(checkpoint, ema=True).keys() == model.state_dict().keys()  # a tied matrix under both names
    checkpoint["model"] = model.state_dict()
    path = out_dir(small) / "ckpt_00000008.pt"
    torch.save(checkpoint, path)
    path.with_suffix(".json").unlink()  # it states another sha256
    for other in out_dir(small).glob("ckpt_*.json"):
        other.unlink()
    assert run(*small, "--init_from=resume", "--max_iters=8") == 0
    assert metrics(small)[8]["val/loss"] == row["val/loss_ema"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_exact(small, tmp_path, optimizer):
    words = (*small, DECAY, f"--optimizer={optimizer}", "--model_type=llama")
    straight = (*words, f"--out_dir={tmp_path / 'straight'}")
    run(*straight)
    run(*words, "--max_iters=5")
    run(*words, "--init_from=resume")
    for step, row in metrics(straight).items():
        assert metrics(words)[step].get("val/loss_ema") == row.get("val/loss_ema")
    resumed, expected = newest(words)["ema"], newest(straight)["ema"]
    assert resumed["updates"] == expected["updates"] == 8
    assert all(torch.equal(resumed["weights"][name], p) for name, p in expected["weights"].items())


def test_it_may_begin_or_end_at_a_resume(small):
    run(*small, "--max_iters=4")
    run(*small, DECAY, "--init_from=resume", "--max_iters=6")
    assert newest(small)["ema"]["updates"] == 2
    run(*small, "--init_from=resume")
    assert newest(small)["ema"] is None and "val/loss_ema" not in metrics(small)[8]


def test_skipped_steps_do_not_count(small, monkeypatch):
    forward = Transformer.forward
    poison = {True: torch.nan, False: 1}
    monkeypatch.setattr(Transformer, "forward", lambda self, *a: forward(self, *a) * poison[self.training])
    run(*small, DECAY, "--nan_policy=skip", "--max_iters=3")
    assert newest(small)["ema"]["updates"] == 0


def test_the_commands_take_it(averaged, tmp_path, no_figures):
    out, sharpness = str(out_dir(averaged)), []
    for ema in (True, False):
        export.main(export.ExportConfig(out_dir=out, to=str(tmp_path / str(ema)), ema=ema))
        exported = load_file(tmp_path / str(ema) / "model.safetensors")["transformer.wte.weight"]
        assert torch.equal(exported, weights_of(newest(averaged), ema)["tok_emb.weight"])
        measure.main(measure.SharpnessConfig(out_dir=out, batches=1, draws=1, batch_size=2, ema=ema))
        measured = json.loads((out_dir(averaged) / "sharpness_fisher_00000008.json").read_text())
        sharpness.append(measured["blocks"]["QK"]["mean"])
    assert sharpness[0] != sharpness[1]
    sample.main(sample.SampleConfig(out_dir=out, num_samples=1, max_new_tokens=4, ema=True, device="cpu"))


def test_mistakes(small, finished_run, tmp_path):
    with pytest.raises(UserError, match=r"ema_decay=1.0: expected in \[0, 1\)"):
        run(*small, "--ema_decay=1")
    out, folder = str(finished_run), tmp_path / "hf"
    for command in (
        lambda: sample.main(sample.SampleConfig(out_dir=out, ema=True)),
        lambda: export.main(export.ExportConfig(out_dir=out, to=str(folder), ema=True)),
    ):
        with pytest.raises(UserError, match="has no average of its weights; train with --ema_decay"):
            command()
    assert not folder.exists()
    with pytest.raises(UserError, match="ema=True: expected False for Hugging Face weights"):
        sample.SampleConfig(init_from="hf:x", ema=True)
