"""A step of every optimizer by hand, multipliers in all, Adam-mini against its authors' package, exact resumes."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ROOT, Fork, finish, losses, metrics, out_dir, run
from torch.nn import Parameter

from blockwise import UserError
from blockwise.blocks import LR_MULT, param_groups
from blockwise.checkpoint import load_optimizer
from blockwise.optimizers import build_optimizer, optimizer_for, state_bytes
from blockwise.settings import TrainConfig
from blockwise.training import memory
from configurator import configure
from model import ModelConfig, Transformer

OPTIMIZERS = ("adamw", "adam_mini", "lion", "muon", "sgd")
BETAS = (0.9, 0.95)
# Two heads of width 2, of which K and V have one; the names that Adam-mini's package knows
SHAPES = {
    "embed_tokens.weight": (8, 4), "layers.0.self_attn.q_proj.weight": (4, 4), "layers.0.self_attn.q_proj.bias": (4,),
    "layers.0.self_attn.k_proj.weight": (2, 4), "layers.0.self_attn.v_proj.weight": (2, 4),
    "layers.0.self_attn.o_proj.weight": (4, 4), "layers.0.mlp.up_proj.weight": (6, 4), "norm.weight": (4,),
    "lm_head.weight": (8, 4),
}  # fmt: skip


def random_parameters():
    generator = torch.Generator().manual_seed(0)
    named = {name: Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    set_gradients(named, generator)
    return named


def set_gradients(named, generator):
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=generator)


def build(name, named, lr=0.01, betas=BETAS, **options):
    return build_optimizer(name, param_groups(list(named.items()), lr, **options), betas, head_width=2)


def double(tensor):
    return tensor.detach().double()


def rate_of(name, lr=0.01):
    leaf = name.split(".")[-2]
    block = {"embed_tokens": "Emb", "lm_head": "Head", "norm": "Norm", "up_proj": "FFN"}.get(leaf)
    return lr * LR_MULT[block or ("QK" if leaf in ("q_proj", "k_proj") else "VO")]


def by_sign(p, g, lr, wd):
    """AdamW's first step: m / correction is g and v / correction is g^2."""
    return p * (1 - lr * wd) - lr * g / (g.abs() + 1e-8)


def by_block_rms(name, p, g, lr, wd):
    if "bias" in name:
        return by_sign(p, g, lr, wd)
    if "q_proj" in name or "k_proj" in name:
        blocks = [rows for rows in g.split(2)]
    else:
        blocks = [g] if "norm" in name else list(g)
    step = torch.cat([(b / (b.square().mean().sqrt() + 1e-8)).reshape(-1) for b in blocks]).view_as(g)
    return p * (1 - lr * wd) - lr * step


def by_orthogonal(p, g, lr, wd):
    """Muon's first step: five times the quintic on the singular values of g / |g|, then AdamW's RMS."""
    u, s, v = torch.linalg.svd(g / g.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return p * (1 - lr * wd) - lr * 0.2 * math.sqrt(max(p.shape)) * (u * s) @ v


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_step_by_hand(optimizer):
    """Every block at its own learning rate, and decay."""
    named = random_parameters()
    expected, wd = {}, 0.5
    for name, parameter in named.items():
        p, g, lr = double(parameter), double(parameter.grad), rate_of(name)
        expected[name] = {
            "adamw": lambda p, g, lr, wd: by_sign(p, g, lr, wd),
            "adam_mini": lambda p, g, lr, wd, name=name: by_block_rms(name, p, g, lr, wd),
            "lion": lambda p, g, lr, wd: p * (1 - lr * wd) - lr * g.sign(),
            "muon": by_orthogonal if "layers" in name and p.ndim == 2 else by_sign,
            "sgd": lambda p, g, lr, wd: p - lr * (g + wd * p),
        }[optimizer](p, g, lr, wd)
    before = {name: p.detach().clone() for name, p in named.items()}
    build(optimizer, named, weight_decay=wd).step()
    for name, p in named.items():
        # Muon computes in bfloat16
        tolerance = 0.02 * rate_of(name) if optimizer == "muon" and "layers" in name and p.ndim == 2 else 1e-6
        torch.testing.assert_close(double(p), expected[name], rtol=0, atol=tolerance)
        assert not torch.equal(p, before[name])


def test_lions_second_step_by_hand():
    """The sign is of beta1 m + (1 - beta1) g, the momentum decays by beta2."""
    named = {"norm.weight": Parameter(torch.zeros(4))}
    optimizer = build("lion", named, lr=1.0, betas=(0.9, 0.98))
    named["norm.weight"].grad = torch.tensor([1.0, 1.0, 1.0, -1.0])
    optimizer.step()  # m is 0.02 g
    named["norm.weight"].grad = torch.tensor([1.0, -0.17, -0.19, 0.19])  # 0.9 * 0.02 is 0.018, 0.1 * 0.18 also
    optimizer.step()
    assert named["norm.weight"].tolist() == [-2.0, -2.0, 0.0, 0.0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_tenfold_emb_step_and_no_other(optimizer):
    ones = dict.fromkeys(LR_MULT, 1.0)
    changes = []
    for mult in (1.0, 10.0):
        named = random_parameters()
        with torch.no_grad():
            for p in named.values():
                p.zero_()
        build(optimizer, named, lr_mult={**ones, "Emb": mult}).step()
        changes.append({name: p.detach() for name, p in named.items()})
    for name in SHAPES:
        factor = 10 if name.startswith("embed") else 1
        torch.testing.assert_close(changes[1][name], factor * changes[0][name], rtol=1e-6 if factor > 1 else 0, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rate_of_zero_stands_still(optimizer):
    """As the first group too, whose rate Lion's package would refuse as its default."""
    named = random_parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    build(optimizer, named, lr_mult={"Emb": 0.0, "QK": 0.0}, weight_decay=0.1).step()
    still = {name for name, p in named.items() if torch.equal(p, before[name])}
    assert still == {name for name in SHAPES if "embed" in name or "q_proj" in name or "k_proj" in name}
    build(optimizer, named, lr=0.0).step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_without_a_gradient_stay(optimizer):
    named = random_parameters()
    named["norm.weight"].grad = named["layers.0.self_attn.o_proj.weight"].grad = None
    before = {name: p.detach().clone() for name, p in named.items()}
    build(optimizer, named, weight_decay=0.1).step()
    assert {name for name, p in named.items() if torch.equal(p, before[name])} == {
        "norm.weight", "layers.0.self_attn.o_proj.weight",
    }  # fmt: skip


def test_lion_is_the_package():
    package = pytest.importorskip("lion_pytorch")
    ours, theirs = random_parameters(), random_parameters()
    optimizers = [
        build("lion", ours, betas=(0.95, 0.98), weight_decay=0.5),
        package.Lion(param_groups(list(theirs.items()), 0.01, weight_decay=0.5), betas=(0.95, 0.98)),
    ]
    for step in range(20):
        for named, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(named, torch.Generator().manual_seed(step))
            optimizer.step()
    for name, p in ours.items():
        torch.testing.assert_close(p, theirs[name], rtol=1e-5, atol=1e-6)


def test_adam_mini_is_its_authors(capsys):
    """Twenty steps at blockwise rates. Their package exempts norms and biases from decay, so ours does here."""
    adam_mini = pytest.importorskip("adam_mini")
    ours, theirs = random_parameters(), random_parameters()
    decay = {"wd_mult": {"Norm": 0.0}, "weight_decay": 0.1}
    bias = "layers.0.self_attn.q_proj.bias"
    matrices = {name: p for name, p in ours.items() if name != bias}
    optimizers = [build("adam_mini", matrices, **decay), build("adam_mini", {bias: ours[bias]})]
    package = adam_mini.Adam_mini(
        theirs.items(), lr=0.01, betas=BETAS, weight_decay=0.1, dim=4, n_heads=2, n_kv_heads=1, verbose=False
    )
    for group in package.param_groups:
        group["lr"] = rate_of(group["name"])
    for step in range(20):
        for named in (ours, theirs):
            set_gradients(named, torch.Generator().manual_seed(step))
        for optimizer in (*optimizers, package):
            optimizer.step()
    for name, p in ours.items():
        torch.testing.assert_close(p, theirs[name], rtol=1e-5, atol=1e-6)


def test_adam_minis_second_moments():
    """One a head for Q and K, a row for V, O, FFN, Emb and Head, a tensor for norms, an element for biases."""
    named = random_parameters()
    optimizer = build("adam_mini", named)
    optimizer.step()
    numbers = {name: optimizer.state[p]["exp_avg_sq"].numel() for name, p in named.items()}
    assert list(numbers.values()) == [8, 2, 4, 1, 2, 4, 6, 1, 8]
    with pytest.raises(ValueError, match="head_width=3"):
        build_optimizer("adam_mini", param_groups(list(named.items()), 0.01), BETAS, head_width=3)
    with pytest.raises(ValueError, match="head_width=None"):
        build_optimizer("adam_mini", param_groups(list(named.items()), 0.01), BETAS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_bytes_are_those_of_the_state(optimizer):
    named = random_parameters()
    built = build(optimizer, named)
    built.step()
    held = sum(v.nbytes for state in built.state.values() for v in state.values() if torch.is_tensor(v))
    groups = param_groups(list(named.items()), 0.01)
    keys = {key for group in groups for key in group}
    config = TrainConfig(optimizer=optimizer, n_embd=4, n_head=2, compile=True, muon_dtype="float32").resolved()
    assert state_bytes(config, groups) == held > 0
    assert {key for group in groups for key in group} == keys  # the caller's groups are as they were


def test_adam_mini_halves_the_state_of_the_papers_llama():
    words = [str(ROOT / "config" / "llama_250m.py"), "--vocab_size=50304"]
    config = configure(TrainConfig, words, "")[0].resolved()
    with torch.device("meta"):
        model = Transformer(ModelConfig.of(config))
    groups = param_groups(model, 1e-3)
    numbers = sum(p.numel() for p in model.parameters())
    adamw, mini = (state_bytes(replace(config, optimizer=name), groups) for name in ("adamw", "adam_mini"))
    assert adamw == pytest.approx(8 * numbers, rel=1e-6)
    assert 0.5 <= mini / adamw <= 0.51


def test_muons_groups_are_live_after_loading():
    """What the loop sets in `param_groups` reaches both parts, and the config's settings outlive the saved ones."""
    named, other = random_parameters(), random_parameters()
    first, second = build("muon", named, weight_decay=0.1), build("muon", other, lr_mult={"QK": 3.0})
    first.step()
    load_optimizer(second, first.state_dict())
    assert all(group["lr_mult"] == 3.0 for group in second.param_groups if group["block"] == "QK")
    assert [group["block"] for group in second.param_groups] == ["QK", "VO", "FFN", "Emb", "QK", "Norm", "Head"]
    before = {name: p.detach().clone() for name, p in other.items()}
    for group in second.param_groups:
        assert group["weight_decay"] == 0.0
        group["lr"] = 0.0
    second.step()
    assert all(torch.equal(p, before[name]) for name, p in other.items())
    second.zero_grad()
    assert all(p.grad is None for p in other.values())


MUON = """
import torch, torch.distributed as dist
from torch.nn import Parameter
from blockwise.optimizers import Muon

SHAPES = [(10, 16), (16, 10), (9, 16), (10, 16), (16, 10), (10, 16), (10, 16), (10, 16)]

def groups(place=lambda tensor: tensor):
    torch.manual_seed(0)
    params = [Parameter(place(torch.randn(shape))) for shape in SHAPES]
    decayed, plain = dict(params=params[:4], lr=1e-2, weight_decay=0.1), dict(params=params[4:], lr=3e-3)
    return params, [decayed, {**plain, "weight_decay": 0.0}]

def train(params, optimizer, place=lambda tensor: tensor):
    torch.manual_seed(1)
    for step in range(20):
        for p, shape in zip(params, SHAPES):
            p.grad = place(torch.randn(shape) * 10.0 ** -(step % 3))
        if step == 3:
            params[0].grad = None  # as of a layer that is not active yet
        optimizer.step()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in params]

def largest_gap(place=lambda tensor: tensor):
    params, grouped = groups()
    theirs = train(params, torch.optim.Muon(grouped, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    params, grouped = groups(place)
    ours = train(params, Muon(grouped), place)
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs))
"""
MUON_ON_TWO = """
import os, sys
sys.path.insert(0, {root!r})
{muon}
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from blockwise.distributed import World
with World.start("cpu", "gloo") as world:
    mesh = init_device_mesh("cpu", (2,))
    gaps = largest_gap(), largest_gap(lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]))
    print(max(gaps), flush=True)
"""


def test_muon_on_many_matrices_at_once_is_torchs():
    """20 steps of several shapes, rates and decays. Smaller products than these are summed in another order."""
    script = {}
    exec(MUON, script)
    assert script["largest_gap"]() <= 1e-6


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 2e-2), ("float32", 1e-5)])
def test_muon_iterates_in_the_precision_that_its_key_names(dtype, tolerance):
    """Against the singular values by hand, relative to the rate."""
    config = TrainConfig(optimizer="muon", muon_dtype=dtype).resolved()
    p = Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    p.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    expected = by_orthogonal(double(p), double(p.grad), 0.1, 0.0)
    groups = [{"params": [p], "block": "QK"}, {"params": [Parameter(torch.ones(2))], "block": "Norm"}]
    optimizer_for(config, [{**group, "lr": 0.1, "weight_decay": 0.0} for group in groups]).step()
    gap = (double(p) - expected).abs().max().item() / 0.1
    assert gap <= tolerance and (gap > 1e-4) == (dtype == "bfloat16")


def test_muon_shared_by_two_processes_is_torchs(tmp_path):
    """Both with whole matrices, and with a share of the rows of each, in odd numbers too."""
    (tmp_path / "two.py").write_text(MUON_ON_TWO.format(root=str(ROOT), muon=MUON))
    status, out, err = finish(Fork(processes=2, script=str(tmp_path / "two.py")))
    assert status == 0, err
    assert [float(line) <= 1e-6 for line in out.split()] == [True, True]


def test_unknown_optimizer(small):
    with pytest.raises(ValueError, match="adam_mini"):
        build_optimizer("adam", [], BETAS)
    with pytest.raises(UserError, match=r"optimizer: expected .* got adam_min; did you mean adam_mini"):
        run(*small, "--optimizer=adam_min")


QUICK = ("--gradient_accumulation_steps=1", "--n_layer=1", "--eval_interval=0", "--max_iters=20", "--lr_decay_iters=20")
SCHEDULES = ("cosine", "linear", "constant", "wsd", "wsd --wsd_boost=paper")


@pytest.mark.parametrize("optimizer, schedule", list(zip(OPTIMIZERS, SCHEDULES, strict=True)))
def test_resume_is_exact(optimizer, schedule, small, tmp_path):
    words = (*small, *QUICK, f"--optimizer={optimizer}", *f"--schedule={schedule}".split())
    straight = (*words, f"--out_dir={tmp_path / 'straight'}")
    run(*straight)
    run(*words, "--max_iters=11")
    run(*words, "--init_from=resume")
    assert losses(straight) == losses(words)
    ends = [torch.load(out_dir(w) / "ckpt_00000020.pt", weights_only=True)["model"] for w in (straight, words)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float16_trains_and_resumes_exactly(optimizer, small, tmp_path, monkeypatch):
    """With a loss scale so large that the first steps overflow, and must leave no state behind."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**20))
    words = (*small, f"--optimizer={optimizer}", "--dtype=float16", "--model_type=llama", "--n_kv_head=1")
    straight = (*words, f"--out_dir={tmp_path / 'straight'}")
    run(*straight)
    run(*words, "--max_iters=5")
    run(*words, "--init_from=resume")
    assert losses(straight) == losses(words)
    overflowed = [step for step, row in metrics(words).items() if isinstance(row.get("grad_norm"), str)]
    assert overflowed and len(overflowed) < 5
    assert all(math.isfinite(loss) for pair in losses(words).values() for loss in pair if loss is not None)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_leaves_no_trace(optimizer, small, tmp_path, monkeypatch):
    forward = Transformer.forward
    calls = iter(range(1000))

    def poisoned(self, tokens, targets=None, cache=None):
        loss = forward(self, tokens, targets, cache)
        return loss * math.nan if self.training and next(calls) == 3 * 4 + 1 else loss  # step 3, one micro-step

    monkeypatch.setattr(Transformer, "forward", poisoned)
    assert run(*small, f"--optimizer={optimizer}", "--nan_policy=skip") == 0
    rows = metrics(small)
    assert rows[3]["train/loss"] == "NaN" and all(math.isfinite(rows[step]["train/loss"]) for step in (4, 5, 6, 7))
    blocks = ("Emb", "QK", "VO", "FFN", "Norm")
    for step in (2, 4):
        assert {key for key in rows[step] if key.startswith("update_rms")} == {f"update_rms/{b}" for b in blocks}


def test_resume_with_another_optimizer_starts_it_afresh(small, capsys):
    run(*small, "--max_iters=4")
    before = "adamw"
    for optimizer, end in (("adam_mini", 5), ("muon", 6), ("lion", 7), ("adamw", 8)):
        assert run(*small, "--init_from=resume", f"--optimizer={optimizer}", f"--max_iters={end}") == 0
        assert f"state not restored: the checkpoint was written by {before}" in capsys.readouterr().out
        before = optimizer
    assert list(metrics(small)) == list(range(9))


def test_the_state_is_told_at_the_start(small, capsys, monkeypatch):
    monkeypatch.setattr(memory, "resident_memory", lambda device: 0)
    wide = ("--n_embd=256", "--vocab_size=2048", "--eval_interval=0", "--max_iters=1")
    run(*small, *wide, "--optimizer=adam_mini")
    assert "optimizer: adam_mini, state 8 MB" in capsys.readouterr().out
    needed = []
    for optimizer in ("adamw", "adam_mini"):
        run(*small, *wide, f"--optimizer={optimizer}", "--dry_run")
        out = capsys.readouterr().out
        needed.append(int(out.split("estimated: ")[1].split(" MB")[0]))
    assert needed[0] - needed[1] == pytest.approx(17 - 8, abs=2)  # four numbers, each rounded to 1 MB


def test_defaults_by_optimizer(small, capsys):
    def resolved(*words):
        run(*small, *words, "--print_config")
        config = json.loads(capsys.readouterr().out)
        return config["weight_decay"], config["beta1"], config["beta2"]

    assert resolved() == resolved("--optimizer=muon") == resolved("--optimizer=adam_mini") == (0.1, 0.9, 0.95)
    assert resolved("--optimizer=lion") == (1.0, 0.95, 0.98)
    assert resolved("--optimizer=sgd") == (0.0, 0.9, 0.95)
    assert resolved("--optimizer=lion", "--weight_decay=0", "--beta1=0") == (0.0, 0.0, 0.98)
