"""Architecture warm-up: the schedule, what is locked and what unlocking changes, runs that are killed in its middle."""

import copy
import functools
import json
import shutil

import pytest
import torch
from conftest import Fork, finish, losses, out_dir, run
from helpers import KINDS, Stop, batch, every_kind, make_config, same
from transformers import AutoModelForCausalLM

import export
import measure
import sample
from blockwise import UserError
from blockwise.blocks import param_groups
from blockwise.checkpoint import load_checkpoint
from blockwise.layer_warmup import LayerWarmup, active_layers_at, layer_schedule, make_identity
from blockwise.optimizers import build_optimizer, keep_state
from blockwise.settings import TrainConfig
from configurator import configure
from model import Transformer

# Two of four layers at first, a third from step 2 on, the last from step 4 on
WARMUP = ("--n_layer=4", "--arch_warmup=True", "--arch_warmup_groups=2", "--arch_warmup_interval=2")
OPTIMIZERS = ("adamw", "adam_mini", "lion", "muon", "sgd")


def schedule(*words):
    return layer_schedule(configure(TrainConfig, ["--arch_warmup=True", *words], "")[0])


def test_the_papers_schedule():
    """16 layers: half of them until the 2,000 steps of warmup are over, then four groups, 500 steps apart."""
    expected = [[0, 8], [2000, 10], [2500, 12], [3000, 14], [3500, 16]]
    assert schedule("--n_layer=16") == expected
    assert [active_layers_at(expected, step) for step in (0, 1999, 2000, 2499, 3500, 10**6)] == [8, 8, 10, 10, 16, 16]
    config = configure(TrainConfig, ["--arch_warmup=True", "--n_layer=16"], "")[0]
    assert LayerWarmup(config, None).describe(2500) == "12 of 16 layers active, 14 from step 3000, 16 from step 3500"


def test_other_schedules():
    third = ("--n_layer=7", "--arch_warmup_start=0.3", "--arch_warmup_groups=2")
    assert schedule(*third) == [[0, 2], [2000, 4], [2500, 7]]
    few = ("--n_layer=2", "--arch_warmup_groups=1")
    for share in (0.01, 0.99):
        assert schedule(*few, f"--arch_warmup_start={share}") == [[0, 1], [2000, 2]]
    for without in ("--decay_lr=False", "--warmup_iters=0"):  # then there is no end of a warmup
        assert schedule(*few, without) == [[0, 1], [500, 2]]
    assert schedule("--arch_warmup=False") == [[0, 12]]


@pytest.mark.parametrize(
    "words,expected",
    [
        (("--n_layer=1",), "n_layer=1: expected at least 2"),
        (("--arch_warmup_start=1",), r"arch_warmup_start=1.0: expected in \(0, 1\)"),
        (("--arch_warmup_groups=3",), "arch_warmup_groups=3: expected at most 2"),
        (("--max_iters=4",), "max_iters=4: expected above 4"),
        (("--init_from=gpt2",), "arch_warmup=True: expected False"),
        (("--init_from=hf:somewhere",), "arch_warmup=True: expected False"),
    ],
)
def test_mistakes(small, words, expected):
    for init in ("scratch", "auto"):
        with pytest.raises(UserError, match=expected):
            run(*small, *WARMUP, f"--init_from={init}", *words)
    assert not (out_dir(small) / "metrics.jsonl").exists()


def shallow(kind, layers=1, **options):
    """A model in training whose layers from `layers` on are locked."""
    torch.manual_seed(0)
    model = Transformer(make_config(**KINDS[kind], n_layer=3, bias=True, **options)).train()
    for block in model.blocks[layers:]:
        make_identity(block)
    model.set_active_layers(layers)
    return model


@every_kind
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_unlocking_changes_no_bit(kind, dtype):
    """Of logits and loss, with dropout drawn, from the same seed; a model that never locked any computes them too."""
    model, (x, y) = shallow(kind, dropout=0.2), batch()
    full = copy.deepcopy(model)
    full.set_active_layers(3)
    logits, losses = [], []
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        for one, layers in ((model, 1), (model, 2), (model, 3), (full, 3)):
            one.set_active_layers(layers)
            torch.manual_seed(5)
            logits.append(one(x))
            torch.manual_seed(5)
            losses.append(one(x, y))
    assert all(torch.equal(x, found[0]) for found in (logits, losses) for x in found)


PAIRS = list(zip(("gpt2", "llama", "grouped", "llama", "gpt2"), OPTIMIZERS, strict=True))


@pytest.mark.parametrize("kind, name", PAIRS)
def test_every_weight_moves_within_two_steps(kind, name):
    model, (x, y) = shallow(kind, qk_norm=True).double(), batch()

    def grown(old=None):
        optimizer = build_optimizer(name, param_groups(model, 1e-2), (0.9, 0.95), 8)
        if old:
            keep_state(optimizer, old)
        return optimizer

    def step(optimizer):
        model(x, y).backward()
        optimizer.step()
        gradients = {n: p.grad.abs().max().item() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.zero_grad()
        return gradients

    optimizer = grown()
    first = step(optimizer)
    assert not any(n.startswith(("blocks.1", "blocks.2")) for n in first)
    held = optimizer.state
    assert set(held) == {p for p in model.parameters() if p.requires_grad}
    model.set_active_layers(3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = grown(optimizer)
    assert set(optimizer.state) == set(held) and all(optimizer.state[p] is state for p, state in held.items())
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(model.parameters())
    gradients = [step(optimizer) for _ in range(2)]
    for n, p in model.named_parameters():
        if n.startswith(("blocks.1", "blocks.2")):
            ends = ("o_proj.weight", "o_proj.bias", "down_proj.weight", "down_proj.bias")
            assert (gradients[0][n] > 0) == n.endswith(ends), n
            assert gradients[1][n] > 0 or n.endswith("k_proj.bias"), n  # a key's bias shifts no softmax
            assert not torch.equal(p, before[n]) or n.endswith("k_proj.bias"), n


def test_locked_layers_cost_nothing(capsys):
    model, (x, y) = shallow("llama"), batch()
    calls = []
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
    one = model.flops_per_token()
    model(x, y).backward()
    assert calls == [0]
    model.set_active_layers(3)
    layer = 6 * (4 * 32 * 32 + 3 * 32 * 48) + 12 * 32 * 16
    assert (one, model.flops_per_token()) == (layer + 6 * 32 * 61, 3 * layer + 6 * 32 * 61)


def checkpoints(words):
    """A run with a checkpoint at every step; returns them."""
    assert run(*words, "--eval_interval=1", "--keep_checkpoints=-1") == 0
    return [load_checkpoint(out_dir(words) / f"ckpt_{step:08d}.pt") for step in range(9)]


def layer_of(name):
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def test_locked_layers_are_outside_of_the_optimizer(small):
    """No moments and no decay until their step, then those of their block type; what is at work goes on."""
    saved = checkpoints((*small, *WARMUP, "--bias=True"))
    for step, one in enumerate(saved):
        layers = 2 if step < 2 else 3 if step < 4 else 4
        members = sum(len(group["params"]) for group in one["optimizer"]["param_groups"])
        assert one["layers"] == [[0, 2], [2, 3], [4, 4]]
        assert members == sum(layer_of(name) < layers for name in one["model"]) - 1  # the output layer is tied
        assert [group["block"] for group in one["optimizer"]["param_groups"]] == ["Emb", "QK", "VO", "FFN", "Norm"]
        begun = 0 if step == 0 else members if step not in (2, 4) else members - 16
        assert len(one["optimizer"]["state"]) == begun
        for name, x in one["model"].items():
            locked = layer_of(name) >= (layers if step not in (2, 4) else layers - 1)
            if locked:
                assert torch.equal(x, saved[0]["model"][name])
                assert x.any() != name.endswith(("o_proj.weight", "down_proj.weight", "bias"))
    steps = {int(state["step"]) for state in saved[8]["optimizer"]["state"].values()}
    assert steps == {8, 6, 4}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "muon")) for n in OPTIMIZERS])
def test_resume_in_the_middle_is_exact(small, tmp_path, name):
    """At the unlocking and between two, to the last bit of weights and moments."""
    model = ("--model_type=llama", "--n_kv_head=1") if name in ("adamw", "muon") else ()
    words = (*small, *WARMUP, *model, f"--optimizer={name}", "--qk_clip=0.01", "--z_loss=1e-3")
    straight = checkpoints(words)[8]
    for step in (2, 3):
        again = (*words, f"--out_dir={tmp_path / str(step)}")
        shutil.copytree(out_dir(words), out_dir(again))
        for path in out_dir(again).glob("ckpt_*"):
            if int(path.stem[5:]) > step:
                path.unlink()
        assert run(*again, "--init_from=resume", "--eval_interval=1", "--keep_checkpoints=-1") == 0
        assert losses(again) == losses(words)
        resumed = load_checkpoint(out_dir(again) / "ckpt_00000008.pt")
        assert all(same(resumed[part], straight[part]) for part in ("model", "optimizer", "layers"))


def test_the_checkpoints_steps_hold(small, tmp_path, capsys):
    """Whatever the keys say by then, also where they are not given again; every change is printed."""
    straight, words = (*small, *WARMUP, f"--out_dir={tmp_path / 'straight'}"), (*small, *WARMUP)
    run(*straight)
    out = capsys.readouterr().out
    assert "2 of 4 layers active, 3 from step 2, 4 from step 4" in out.split("step 0")[0]
    assert "QK" + " " * 11 + "4" in out  # tensors
    assert "step 2: 3 of 4 layers active, 4 from step 4" in out and "step 4: 4 of 4 layers active" in out
    run(*words, stop=Stop(words, 1))
    assert len(losses(words)) == 3 and "3 of 4 layers active, 4 from step 4" in capsys.readouterr().out
    other = (*words, f"--out_dir={tmp_path / 'other'}", "--warmup_iters=3")  # from the keys it would be step 5 now
    shutil.copytree(out_dir(words), out_dir(other))
    assert run(*other, "--init_from=resume") == 0 and "step 4: 4 of 4" in capsys.readouterr().out
    assert run(*small, "--n_layer=4", "--init_from=resume", "--arch_warmup_interval=3") == 0
    out = capsys.readouterr().out
    assert "arch_warmup_interval keeps the checkpoint's value 2" in out and "step 4: 4 of 4 layers active" in out
    assert losses(words) == losses(straight)
    config = json.loads((out_dir(words) / "config.json").read_text())
    assert config["arch_warmup"] is True and config["arch_warmup_interval"] == 2


def test_a_run_with_all_layers_stays_so(small):
    run(*small, "--n_layer=4", "--max_iters=1")
    with pytest.raises(UserError, match="began with all of its layers"):
        run(*small, *WARMUP, "--init_from=resume")


@pytest.fixture
def middle(small):
    """Words of a run that was stopped while two of its four layers were locked."""
    words = (*small, *WARMUP, "--warmup_iters=3", "--model_type=llama", "--dropout=0")
    run(*words, stop=Stop(words, 0))
    return words


def test_a_checkpoint_of_the_middle_is_a_whole_model(middle, tmp_path, capsys, monkeypatch):
    """Its locked layers add nothing: evaluated, sampled, exported, measured with them or without."""
    saved = load_checkpoint(out_dir(middle) / "ckpt_00000002.pt")
    assert (saved["step"], saved["layers"]) == (2, [[0, 2], [3, 3], [5, 4]])
    model, *_ = sample.from_checkpoint(sample.SampleConfig(out_dir=str(out_dir(middle))))
    assert model.eval().n_active_layers == 4
    x = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(x)
        model.set_active_layers(2)
        assert torch.equal(model(x), logits)
    model.set_active_layers(4)
    generator = torch.Generator().manual_seed(0)
    assert len(list(model.generate(x[:, :3], 20, generator=generator))) == 20

    capsys.readouterr()
    assert run(*middle, "--init_from=resume", "--eval_only=True") == 0
    assert "validation loss" in capsys.readouterr().out

    config, _, _ = configure(export.ExportConfig, [f"--out_dir={out_dir(middle)}", f"--to={tmp_path / 'hf'}"], "")
    export.main(config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(theirs(x).logits, logits, rtol=0, atol=1e-5)

    monkeypatch.setattr(measure, "draw", lambda _: None)  # the figures
    words = [f"--out_dir={out_dir(middle)}", "--batches=1", "--draws=1", "--batch_size=2", "--device=cpu"]
    assert measure.main(configure(measure.SharpnessConfig, words, "")[0]) == 0
    (path,) = out_dir(middle).glob("sharpness_*.json")
    assert json.loads(path.read_text())["blocks"]["QK"]["mean"] > 0


def test_compiled_anew(small, tmp_path, monkeypatch):
    """With a backend that needs no compiler, and a limit of compilations that each number of layers keeps to."""
    words = (*small, *WARMUP, "--dropout=0")
    compiled = (*words, "--compile=True", f"--out_dir={tmp_path / 'compiled'}")
    run(*words)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        assert run(*compiled) == 0
    assert losses(compiled) == losses(words)


@pytest.mark.slow
def test_two_processes(small, tmp_path):
    """The same losses as one process, with the same layers active; also where the largest logits are of one alone."""
    words = (*small, *WARMUP, "--learning_rate=1e-4", "--max_iters=12", "--qk_clip=1e-3")
    alone = (*words, f"--out_dir={tmp_path / 'alone'}")
    run(*alone)
    status, out, err = finish(Fork(*words, processes=2))
    assert status == 0 and out.count("layers active") == 3, err
    for step, pair in losses(alone).items():
        assert losses(words)[step] == pytest.approx(pair, abs=1e-5)
