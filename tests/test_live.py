"""The curvature measured while training: against dense matrices, without a trace in training, exact when resumed."""

import copy
import json
import math
import shutil
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from conftest import Fork, finish, losses, metrics, out_dir, run
from explicit import explicit_hessian_of, flat, make, make_batch

import measure
from blockwise import UserError
from blockwise.blocks import block_type, param_groups
from blockwise.curvature import memory
from blockwise.curvature.diagonals import fisher_diagonal, fisher_sharpness
from blockwise.curvature.eigenvalues import Eigenvalue, largest_eigenvalue
from blockwise.curvature.hessian import Batch, HessianVectorProduct, Preconditioned, scaling
from blockwise.curvature.memory import micro_batch_within, product_memory
from blockwise.distributed import World
from blockwise.hardware import at_depth
from blockwise.loader import Dataset, probe_batch
from blockwise.optimizers import build_optimizer, preconditioner, stability_threshold
from blockwise.settings import TrainConfig
from blockwise.training import LiveCurvature
from configurator import configure
from model import ModelConfig, Transformer

RATES = {"Emb": 3e-3, "QK": 2e-3, "VO": 1e-3, "FFN": 5e-4, "Norm": 2.5e-4, "Head": 4e-3}
LIVE = ("--curvature_interval=1", "--sharpness_interval=2")
WARMUP = ("--arch_warmup=True", "--arch_warmup_groups=1")
NUMBERS = ("curvature/lambda_max", "curvature/lr_lambda", "curvature/threshold", "curvature/residual")


@cache
def trained_and_hessian(name):
    """The same, and the explicit Hessian on the batch that measures: only to be read."""
    model, optimizer = trained(name)
    return model, optimizer, explicit_hessian_of(model, few_tokens(9))


def trained(name, steps=3):
    """A tiny untied LLaMA after some steps on tokens below 4, so that token 4's row of Emb has never had a gradient."""
    model = make("llama", False)
    optimizer = build_optimizer(name, param_groups(model, 1.0), (0.9, 0.95), 2)
    for group in optimizer.param_groups:
        group["lr"] = RATES[group["block"]]
    for number in range(steps):
        batch = few_tokens(number)
        model(batch.x, batch.y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def few_tokens(number):
    batch = make_batch(number)
    return Batch(batch.x % 4, batch.y % 4, batch.sequences, batch.positions)


def dense_scale(model, optimizer, name, steps):
    """The diagonal of R^(1/2) P^(-1/2), from the state and the definitions alone."""
    parts = []
    for path, p in model.named_parameters():
        block, state = block_type(path), optimizer.state[p]
        P = torch.ones_like(p)
        if name != "sgd":
            v = state["exp_avg_sq"] / (1 - 0.95**steps)
            if name == "adam_mini" and block == "QK" and p.ndim == 2:  # (heads, 1, 1), two rows a head
                v = v.flatten().repeat_interleave(2)[:, None]
            v = v.expand_as(p)
            P = torch.where(v == 0, math.inf, v.sqrt() + 1e-8)
        parts.append((RATES[block] / RATES["Norm"] / P).sqrt())
    return flat(parts)


def live(model, batch, solve, exclude=(), seed=0):
    """Measures on this batch, by this method."""
    words = [f"--curvature_exclude={','.join(exclude)}"] if exclude else []
    words = [f"--seed={seed}", "--curvature_interval=1", "--curvature_batch_size=1", *words]
    config = configure(TrainConfig, [*words, "--beta1=0.9"], "")[0]
    split = SimpleNamespace(random_starts=lambda *_: [0], sequences=lambda *_: (batch.x, batch.y))
    found = LiveCurvature(config, model, split, World(0, 1, torch.device("cpu")), None)
    found.batch, found.solve = batch, solve
    return found


def all_products(matvec, start):
    return largest_eigenvalue(matvec, start, 10 * len(start), 1e-9, dimension=60)


@pytest.mark.parametrize("name, exclude", [("adamw", ()), ("adamw", ("Emb", "Head")), ("adam_mini", ()), ("sgd", ())])
def test_the_operator_is_the_dense_one(name, exclude):
    model, optimizer, H = trained_and_hessian(name)
    batch = few_tokens(9)
    scales = scaling(optimizer.param_groups, preconditioner(optimizer), exclude)
    names = {p: n for n, p in model.named_parameters()}
    where = dict(zip(names, torch.arange(len(H)).split([p.numel() for p in names]), strict=True))
    index = torch.cat([where[p] for p in scales])  # the operator goes by the optimizer's groups
    assert {block_type(names[p]) for p in names.keys() - scales.keys()} == set(exclude)
    D = dense_scale(model, optimizer, name, 3)[index]
    H = H[index][:, index]
    G = D[:, None] * H * D
    matrix = Preconditioned(model, batch, scales)
    assert torch.allclose(matrix.scale, D, rtol=1e-10)
    unseen = 4 if name != "sgd" and not exclude else 0  # the row of the token that never came
    assert (matrix.scale == 0).sum() == unseen
    v = torch.randn(len(D), dtype=torch.float64)
    assert torch.allclose(matrix(v), G @ v, rtol=1e-8, atol=1e-8 * G.abs().max())

    tracker = live(model, batch, all_products, exclude=exclude)
    row = tracker.curvature(optimizer.param_groups, preconditioner(optimizer))
    value = torch.linalg.eigvalsh(G)[-1].item()
    assert row["curvature/lambda_max"] == pytest.approx(value, rel=1e-6)
    assert row["curvature/lr_lambda"] == pytest.approx(2.5e-4 * value, rel=1e-6)
    assert (row["curvature/threshold"], tracker.eigenvector.keys()) == (pytest.approx(38), {names[p] for p in scales})
    x = flat([tracker.eigenvector[names[p]] for p in scales])  # in the parameters' space: H x = lambda P R^(-1) x
    inside = D > 0
    assert torch.allclose((H @ x)[inside], value * (x / D**2)[inside], atol=1e-5 * value * (x / D**2)[inside].norm())


def test_the_vector_is_carried_in_the_space_of_the_parameters():
    """The start of the next time is D^(-1) x with that time's D; coordinates that have no gradient stay out."""
    model, optimizer = trained("adamw")
    batch, starts = few_tokens(9), []

    def spy(matvec, start):
        starts.append(start)
        return Eigenvalue(1.0, start / start.norm(), 0.0, 1, False)

    tracker = live(model, batch, spy)
    tracker.curvature(optimizer.param_groups, preconditioner(optimizer))
    carried = copy.deepcopy(tracker.eigenvector)
    model(batch.x, batch.y).backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] *= 1 + len(group["params"])
    scales = scaling(optimizer.param_groups, preconditioner(optimizer))
    tracker.curvature(optimizer.param_groups, preconditioner(optimizer))
    names = {p: name for name, p in model.named_parameters()}
    x, D = flat([carried[names[p]] for p in scales]), flat(scales.values())
    assert torch.allclose(starts[1] * D, x) and (starts[1][D == 0] == 0).all() and (D == 0).sum() == 4

    fresh = live(model, batch, spy, seed=1)
    fresh.eigenvector = {name: value for name, value in carried.items() if "blocks.0" not in name}  # a part alone
    fresh.curvature(optimizer.param_groups, preconditioner(optimizer))
    parts = dict(zip((names[p] for p in scales), starts[2].split([p.numel() for p in scales]), strict=True))
    assert not parts["blocks.0.attn.q_proj.weight"].any() and parts["blocks.1.attn.q_proj.weight"].any()


def test_what_cannot_be_measured_yet():
    model, _ = trained("adamw")
    batch = few_tokens(9)
    fresh = build_optimizer("adamw", param_groups(model, 1e-3), (0.9, 0.95))
    assert live(model, batch, all_products).curvature(fresh.param_groups, preconditioner(fresh)) == {}
    model, optimizer = trained("adamw")
    stopped = [{**group, "lr": 0.0} for group in optimizer.param_groups]
    assert live(model, batch, all_products).curvature(stopped, preconditioner(optimizer)) == {}
    lion = build_optimizer("lion", param_groups(model, 1e-3), (0.9, 0.95))
    with pytest.raises(ValueError, match="Lion has no diagonal preconditioner"):
        preconditioner(lion)


def test_a_product_that_is_not_finite():
    model, optimizer = trained("adamw")
    tracker = live(model, few_tokens(9), lambda matvec, start: largest_eigenvalue(matvec, start, 5, 0.0))
    assert math.isfinite(tracker.curvature(optimizer.param_groups, preconditioner(optimizer))["curvature/lambda_max"])
    with torch.no_grad():
        model.norm_f.weight[0] = math.inf
    row = tracker.curvature(optimizer.param_groups, preconditioner(optimizer))
    assert math.isnan(row["curvature/lambda_max"]) and math.isnan(row["curvature/residual"])
    assert tracker.eigenvector is None


def test_the_threshold_is_where_a_quadratic_diverges():
    """One step of each optimizer's rule, many times, with a rate just below and just above."""
    for name, momentum in (("sgd", 1.0), ("adamw", 0.1)):  # the gradient's weight in the momentum
        for factor, grows in ((0.99, False), (1.01, True)):
            x, m = 1.0, 0.0
            for _ in range(3000):
                m = 0.9 * m + momentum * x
                x -= factor * stability_threshold(name, 0.9) * m
                if abs(x) > 1e6:
                    break
            assert (abs(x) > 1e3) == grows, (name, factor)
    p = torch.nn.Parameter(torch.ones(1))
    sgd = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    for _ in range(3):
        p.grad = torch.ones(1)
        sgd.step()
    assert sgd.state[p]["momentum_buffer"].item() == pytest.approx(1 + 0.9 + 0.81)  # a sum, not an average


def test_fisher_sharpness_is_the_diagonals_mean():
    model, batch = make("gpt2", True), make_batch()
    blocks = {group["block"]: group["params"] for group in param_groups(model, 1.0)}
    found = fisher_sharpness(model, blocks, batch, 3, draw=4)
    cut = fisher_sharpness(model, blocks, replace(batch, micro=1), 3, draw=4)
    params = list(model.parameters())
    diagonal = dict(zip(params, fisher_diagonal(model, batch, params, 3, 4), strict=True))
    assert found.keys() == {"Emb", "QK", "VO", "FFN", "Norm"}
    for block, members in blocks.items():
        entries = flat([diagonal[p] for p in members])
        assert found[block] == pytest.approx(entries.mean().item(), rel=1e-10)
        assert cut[block] == pytest.approx(found[block], rel=1e-9)


def test_a_process_without_sequences_adds_nothing(data_dir):
    split = Dataset.open(data_dir, "tiny", 16).train
    split.checked = False
    x, y = probe_batch(split, 0, 0, [], 16)
    assert x.shape == y.shape == (0, 16)
    model, batch = make("llama", True), make_batch()
    empty = Batch(batch.x[:0], batch.y[:0], [], batch.positions)
    products = HessianVectorProduct(model, empty, model.parameters())
    assert not products(torch.ones(products.size, dtype=torch.float64)).any()


def test_probing_computes_in_full_float32(monkeypatch):
    model, batch = make("gpt2", True), make_batch()
    seen = []
    forward = type(model).forward

    def looking(*args):
        seen.append(torch.get_float32_matmul_precision())
        return forward(*args)

    monkeypatch.setattr(type(model), "forward", looking)
    torch.set_float32_matmul_precision("high")
    try:
        HessianVectorProduct(model, replace(batch, precision="high"), model.parameters())  # TF32 is for CUDA alone
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# Memory


def test_the_memory_of_a_product():
    """More for more sequences, in proportion; at least the logits four times over."""
    config = replace(make("gpt2", True).config, vocab_size=2048, block_size=8)
    make_model = partial(Transformer, config)
    needed = [product_memory(make_model, n, 8, torch.device("cpu")) for n in (1, 2, 4)]
    assert needed[2] - needed[1] == pytest.approx(2 * (needed[1] - needed[0]), rel=0.1)
    assert needed[1] - needed[0] > 4 * 8 * config.vocab_size * 4


def layered(config):
    return lambda layers: Transformer(replace(config, n_layer=layers))


@pytest.mark.parametrize("model_type", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_memory_of_a_deeper_product(model_type):
    """From one and two layers; with logits that weigh little and much beside a layer."""
    for vocabulary, sequences in ((64, 3), (4096, 2)):
        make_model = layered(replace(make(model_type, False).config, vocab_size=vocabulary, block_size=32))
        needed = {n: product_memory(partial(make_model, n), sequences, 32, torch.device("cpu")) for n in (1, 2, 4)}
        assert at_depth(needed.get, 4) == pytest.approx(needed[4], rel=0.03)


def test_how_many_sequences_fit(small, monkeypatch):
    """One takes 150 MB and each more 50, beside 14 vectors of the weights' length that are held."""
    words = (*small, "--curvature_interval=2", "--vocab_size=64", "--curvature_batch_size=7")
    config = configure(TrainConfig, words, "")[0].resolved()
    model, world = Transformer(ModelConfig.of(config)), SimpleNamespace(size=1, device=torch.device("cpu"))
    assert micro_batch_within(10e9, config, model, world) == 7
    monkeypatch.setattr(memory, "product_memory", lambda make_model, sequences, *_: 1e6 * (100 + 50 * sequences))
    held = 14 * 4 * sum(p.numel() for p in model.parameters())

    def fits(limit):
        return micro_batch_within((1e6 * limit + held) / memory.SHARE, config, model, world)

    assert [fits(limit) for limit in (151, 401, 449, 451, 1e4)] == [1, 6, 6, 7, 7]
    for limit in (149, -1):
        with pytest.raises(UserError, match=r"a product of one sequence needs .*expected a smaller block_size"):
            fits(limit)


def test_no_memory_to_measure_is_one_line(small, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")

    monkeypatch.setattr(LiveCurvature, "curvature", full)
    with pytest.raises(UserError, match=r"lower batch_size=.*, or lower curvature_micro_batch"):
        run(*small, "--curvature_interval=1", "--curvature_micro_batch=3")


# In train.py


RUNS = (
    ("--model_type=llama", "--dtype=bfloat16", "--optimizer=adam_mini"),
    ("--curvature_method=power", "--optimizer=sgd", "--learning_rate=1e-2"),
)


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_training_does_not_see_it(small, tmp_path, words):
    """Bitwise the same losses, with dropout and accumulation, on a LLaMA under autocast and a GPT-2."""
    sgd = "--optimizer=sgd" in words  # which has a preconditioner from the start
    off = (*small, *words, f"--out_dir={tmp_path / 'off'}")
    run(*off)
    run(*small, *words, *LIVE)
    assert losses(small) == losses(off)
    plain, rows = metrics(off), metrics(small)
    for step in range(8):
        assert [rows[step][key] for key in rows[step] if key.startswith(("grad_norm", "update_rms"))] == [
            plain[step][key] for key in plain[step] if key.startswith(("grad_norm", "update_rms"))
        ]
        assert ("curvature/lambda_max" in rows[step]) == (step > 0 or sgd)
        assert ("sharpness/QK" in rows[step]) == (step % 2 == 0)
    assert rows[7]["curvature/threshold"] == pytest.approx(3.8 if sgd else 38)
    assert not any(key.startswith(("curvature/", "sharpness/")) for row in plain.values() for key in row)


def test_rows(small):
    words = (*small, "--curvature_interval=3", "--sharpness_interval=2", "--log_interval=5", "--eval_interval=0")
    run(*words)
    rows = metrics(words)
    assert list(rows) == [0, 2, 3, 4, 5, 6, 8]
    for step in (3, 6):
        row = rows[step]
        assert row["curvature/lr_lambda"] == row["lr/Norm"] * row["curvature/lambda_max"]
        assert row["curvature/threshold"] == pytest.approx(38) and row["curvature/ms"] > 0
        assert row["curvature/residual"] >= 0 and "train/loss" in row
    assert {key for key in rows[2] if key.startswith("sharpness")} == {
        f"sharpness/{block}" for block in ("Emb", "QK", "VO", "FFN", "Norm")
    }
    assert json.loads((out_dir(words) / "config.json").read_text())["curvature_batch_size"] == 1  # an eighth of 8


def numbers(words):
    """What was measured, but for the time it took."""
    keys = (*NUMBERS, *(f"{what}/{block}" for what in ("sharpness", "lr_mult") for block in RATES))
    return {step: {key: row[key] for key in keys if key in row} for step, row in metrics(words).items()}


def test_resume_is_exact(small, tmp_path):
    """From the checkpoint of step 4, also where a layer is put to work after it."""
    small = (*small, "--model_type=llama", *WARMUP, "--warmup_iters=6", "--keep_checkpoints=-1")
    straight = (*small, *LIVE, f"--out_dir={tmp_path / 'straight'}")
    run(*straight)
    shutil.copytree(out_dir(straight), out_dir(small))
    expected = losses(straight), numbers(straight)

    def resume(*words):
        for path in out_dir(small).glob("ckpt_00000008.*"):
            path.unlink()
        run(*small, *words, "--init_from=resume")

    resume(*LIVE)
    assert (losses(small), numbers(small)) == expected
    shutil.rmtree(out_dir(small))
    run(*small)  # switched on later, from a checkpoint that has no vector; then at another interval
    resume("--curvature_interval=1", "--max_iters=7")
    run(*small, "--curvature_interval=2", "--init_from=resume", "--max_iters=9", "--lr_decay_iters=8")
    assert all(losses(small)[step] == losses(straight)[step] for step in range(8))
    measured = numbers(small)
    assert [step for step in measured if measured[step]] == [4, 5, 6, 8]
    saved = torch.load(out_dir(small) / "ckpt_00000009.pt", weights_only=True)
    assert saved["eigenvector"].keys() == saved["model"].keys()


@pytest.mark.slow
def test_two_processes_measure_the_same(small, tmp_path):
    """Two sequences here and one there; along 20 steps, over which rounding is amplified."""
    words = (*small, "--learning_rate=1e-4", "--min_lr=1e-5", "--max_iters=20", "--lr_decay_iters=20", *LIVE)
    words = (*words, "--curvature_batch_size=3", "--model_type=llama", "--lr_mult=auto", "--auto_mult_power=0.1")
    alone = (*words, f"--out_dir={tmp_path / 'alone'}")
    run(*alone)
    status, _, err = finish(Fork(*words, processes=2))
    assert status == 0, err
    one, two = numbers(alone), numbers(words)
    assert list(one) == list(two) and len(one[19]) == 4 and len(one[18]) == 10
    found = {key: value for key, value in one[1].items() if key.startswith("lr_mult")}
    assert {key: two[1][key] for key in found} == pytest.approx(found, rel=1e-4) and 1 < found["lr_mult/QK"] < 10
    for step, row in one.items():
        for key, value in row.items():
            assert two[step][key] == pytest.approx(value, rel=1e-2), (step, key)


@pytest.mark.parametrize("words", [(), (*WARMUP, "--warmup_iters=6")], ids=["", "one layer at work"])
def test_what_was_measured_live_is_what_the_checkpoint_has(small, words):
    """With as many products as it takes, on the same sequences: measure.py finds the live value of the same step."""
    on = ("--curvature_interval=4", "--curvature_hvps=100", "--curvature_batch_size=4", "--curvature_exclude=Emb")
    run(*small, *on, *words)
    same = ("--checkpoints=all", "--seed=1337", "--batch_size=4", "--exclude=Emb", "--device=cpu")
    config, _, _ = configure(measure.CurvatureConfig, [f"--out_dir={out_dir(small)}", *same], "")
    measure.main(config)
    found = json.loads((out_dir(small) / "curvature_00000004.json").read_text())["preconditioned"]
    row = metrics(small)[4]
    assert found["lambda_max"] == pytest.approx(row["curvature/lambda_max"], rel=1e-4)
    assert found["lr_lambda"] == pytest.approx(row["curvature/lr_lambda"], rel=1e-4)
    assert found["converged"] and found["lr"]["QK"] == row["lr/QK"]
    saved = torch.load(out_dir(small) / "ckpt_00000008.pt", weights_only=True)
    assert any("blocks.1" in name for name in saved["eigenvector"]) == (not words)


BAD = {
    "curvature_hvps=0: expected at least 1": ("--curvature_hvps=0",),
    "curvature_interval=-1: expected at least 0": ("--curvature_interval=-1",),
    "curvature_batch_size=0: expected at least 1": ("--curvature_batch_size=0",),
    "curvature_interval=2: expected 0 with optimizer=lion": ("--curvature_interval=2", "--optimizer=lion"),
    "curvature_interval=2: expected 0 with optimizer=muon": ("--curvature_interval=2", "--optimizer=muon"),
    "expected to leave one of Emb, QK, VO, FFN, Norm": (*LIVE, "--curvature_exclude=Emb,QK,VO,FFN,Norm"),
    "did you mean Emb": ("--curvature_exclude=Enb,QK",),
    "lr_mult.Norm is 0": ("--curvature_interval=2", "--lr_mult.Norm=0"),
    "did you mean krylov": ("--curvature_method=krilov",),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(small, message):
    with pytest.raises(UserError, match=message):
        run(*small, *BAD[message])
    assert not (out_dir(small) / "metrics.jsonl").exists()
