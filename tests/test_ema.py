"""ema_decay: the average by hand, its evaluation, an exact resume, and the commands that take it."""

import json

import pytest
import torch
from conftest import losses, metrics, out_dir, run
from safetensors.torch import load_file

import export
import measure
import sample
from blockwise import UserError
from blockwise.checkpoint import load_checkpoint, weights_of
from blockwise.training.ema import EMA
from configurator import configure
from model import Transformer

DECAY = "--ema_decay=0.9"


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


def test_off_is_absent_and_on_changes_nothing_else(small, tmp_path):
    on = (*small, DECAY, f"--out_dir={tmp_path / 'on'}")
    run(*small)
    run(*on)
    assert losses(on) == losses(small)
    assert not any("val/loss_ema" in row for row in metrics(small).values()) and newest(small)["ema"] is None
    averaged = {step: row["val/loss_ema"] for step, row in metrics(on).items() if "val/loss" in row}
    assert averaged[0] == metrics(on)[0]["val/loss"] and averaged[8] != metrics(on)[8]["val/loss"]


def test_what_is_evaluated_is_the_average(small):
    """By a model that is built from the checkpoint's average and evaluated as the run's own weights."""
    run(*small, DECAY)
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
    one, other = newest(words)["ema"], newest(straight)["ema"]
    assert one["updates"] == other["updates"] == 8
    assert all(torch.equal(one["weights"][name], p) for name, p in other["weights"].items())


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


def test_the_commands_take_it(small, tmp_path, capsys, no_figures):
    run(*small, DECAY)
    source = f"--out_dir={out_dir(small)}"
    for ema in (True, False):
        words = [source, f"--to={tmp_path / str(ema)}", f"--ema={ema}"]
        export.main(configure(export.ExportConfig, words, "")[0])
        exported = load_file(tmp_path / str(ema) / "model.safetensors")["transformer.wte.weight"]
        assert torch.equal(exported, weights_of(newest(small), ema)["tok_emb.weight"])
    found = []
    for ema in (True, False):
        config = measure.SharpnessConfig(out_dir=str(out_dir(small)), batches=1, draws=1, batch_size=2, ema=ema)
        assert measure.main(config) == 0
        measured = json.loads((out_dir(small) / "sharpness_fisher_00000008.json").read_text())
        found.append(measured["blocks"]["QK"]["mean"])
    assert found[0] != found[1]
    out = str(out_dir(small))
    sample.main(sample.SampleConfig(out_dir=out, num_samples=1, max_new_tokens=4, ema=True, device="cpu"))


def test_mistakes(small):
    with pytest.raises(UserError, match=r"ema_decay=1.0: expected in \[0, 1\)"):
        run(*small, "--ema_decay=1")
    run(*small, "--max_iters=1")
    for command in (
        lambda: sample.main(sample.SampleConfig(out_dir=str(out_dir(small)), ema=True)),
        lambda: export.main(export.ExportConfig(out_dir=str(out_dir(small)), to=str(out_dir(small) / "hf"), ema=True)),
    ):
        with pytest.raises(UserError, match="has no average of its weights; train with --ema_decay"):
            command()
    assert not (out_dir(small) / "hf").exists()
    with pytest.raises(UserError, match="ema=True: expected False for Hugging Face weights"):
        sample.SampleConfig(init_from="hf:x", ema=True)
