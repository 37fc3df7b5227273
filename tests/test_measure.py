"""measure.py from the command line's words: what it writes, on one process and two, however batches are cut."""

import hashlib
import json
import shutil
import sys
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SMALL, Fork, finish, metrics, out_dir, run, start
from helpers import coloured

import measure
import train
from blockwise import UserError
from blockwise.checkpoint import load_checkpoint
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.distributed import World
from blockwise.loader import Dataset
from blockwise.measuring import frequency, models
from blockwise.measuring import spectrum as measuring_spectrum
from blockwise.measuring.curvature import saved_optimizer
from blockwise.optimizers import preconditioner
from blockwise.rules import RULES
from blockwise.schedules import block_rate
from blockwise.settings import TrainConfig
from configurator import configure
from model import ModelConfig, Transformer

LLAMA = ("--model_type=llama", "--keep_checkpoints=-1")
FEW = ("--batches=2", "--draws=2", "--batch_size=4", "--device=cpu")


@pytest.fixture(scope="module")
def llama(data_dir, tmp_path_factory):
    """The folder of a finished run of a LLaMA with checkpoints at 0, 4 and 8: only to be read."""
    folder = tmp_path_factory.mktemp("llama") / "out"
    run(*SMALL, f"--data_dir={data_dir}", f"--out_dir={folder}", *LLAMA)
    return folder


@pytest.fixture
def trained(llama, small):
    """Words for a copy of that run."""
    shutil.copytree(llama, out_dir(small))
    return f"--out_dir={out_dir(small)}"


def command(name, *words):
    return measure.main(configure(measure.COMMANDS[name], words, "")[0])


sharpness, spectrum, curvature = (partial(command, name) for name in ("sharpness", "spectrum", "curvature"))


def written(folder, name, step=8):
    return json.loads((folder / f"{name}_{step:08d}.json").read_text())


def test_sharpness_of_all_checkpoints(trained, small, capsys):
    """A value and an error for every block, layer by layer, and how they change."""
    assert sharpness(trained, *FEW, "--checkpoints=all") == 0
    steps = [written(out_dir(small), "sharpness_fisher", step) for step in (0, 4, 8)]
    assert len({result["blocks"]["QK"]["mean"] for result in steps}) == 3
    result = steps[-1]
    assert set(result["blocks"]) == {"Emb", "Head", "QK", "VO", "FFN", "Norm"}
    for block in result["blocks"].values():
        assert block["mean"] > block["error"] > 0 and block["parameters"] > 0
        assert block["geometric"] * block["positive"] <= block["mean"]
    assert {(row["layer"], row["block"]) for row in result["layers"]} >= {(0, "QK"), (1, "Norm"), (None, "Emb")}
    assert result["positions"] == 4 * 16 and result["step"] == 8
    assert "Norm" in capsys.readouterr().out
    for name in ("sharpness_fisher.png", "sharpness_fisher_evolution.png"):
        assert coloured(out_dir(small) / name) > 1000


ESTIMATORS = {"hessian": "--estimator=hessian", "empirical": "--estimator=empirical", "data_labels": "--labels=data"}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_cut_does_not_matter(trained, small, kind, no_figures):
    """And the checkpoints stay as they are."""
    before = {path: path.read_bytes() for path in out_dir(small).iterdir()}
    sharpness(trained, *FEW, ESTIMATORS[kind])
    whole = written(out_dir(small), f"sharpness_{kind}")
    sharpness(trained, *FEW, ESTIMATORS[kind], "--micro_batch=1")
    cut = written(out_dir(small), f"sharpness_{kind}")
    for block, stats in whole["blocks"].items():
        assert cut["blocks"][block]["mean"] == pytest.approx(stats["mean"], rel=1e-4)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_two_processes_see_the_same(trained, small, no_figures):
    folder = out_dir(small)
    sharpness(trained, *FEW, "--batch_size=5")
    one = written(folder, "sharpness_fisher")
    status, _, err = finish(Fork("sharpness", trained, *FEW, "--batch_size=5", processes=2, script="measure.py"))
    assert status == 0, err
    two = written(folder, "sharpness_fisher")
    assert two["seconds"] != one["seconds"]
    for a, b in zip(one["layers"], two["layers"], strict=True):
        assert b["mean"] == pytest.approx(a["mean"], rel=1e-4), a
    for block in one["blocks"]:
        assert two["blocks"][block]["error"] == pytest.approx(one["blocks"][block]["error"], rel=1e-2)


def test_a_tied_matrix_is_the_embedding(finished, no_figures):
    sharpness(f"--out_dir={out_dir(finished)}", *FEW)
    assert "Head" not in written(out_dir(finished), "sharpness_fisher")["blocks"]


def test_figures_that_fail_are_a_warning(trained, small, capsys, monkeypatch):
    """Without matplotlib there is one line, and the numbers are on the disk: here of too few products."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert curvature(trained, "--products=2", "--batch_size=1", "--device=cpu") == 0
    out, err = capsys.readouterr()
    (warning,) = err.splitlines()
    assert warning.startswith("warning: no figures: ModuleNotFoundError: import of matplotlib.figure halted")
    result = written(out_dir(small), "curvature")
    assert not result["hessian"]["converged"] and result["hessian"]["products"] == 2
    assert "NOT CONVERGED after 2 products" in out


MISTAKES = [
    ("sharpness", "--out_dir=no/run", "no checkpoint in"),
    ("sharpness", "--batches=0", "batches=0: expected at least 1"),
    ("sharpness", "--dataset=nowhere", "no data set 'nowhere'"),
    ("sharpness", "--estimator=fischer", "did you mean fisher"),
    ("sharpness", "--block_size=17", "17 tokens where block_size is 16|block_size=17"),
    ("spectrum", "--blocks=QKV", "blocks=QKV: no block type and no tensor of the model; did you mean QK"),
    ("spectrum", "--blocks=Emb --layers=0", "blocks=Emb: no block type and no tensor of the model in layers 0"),
    ("spectrum", "--layers=2", "layers=2: expected layers of 0 to 1"),
    ("spectrum", "--probes=0", "probes=0: expected at least 1"),
    ("spectrum", "--estimator=fisher", "unknown key 'estimator'"),
    ("curvature", "--products=0", "products=0: expected at least 1"),
    ("curvature", "--tolerance=0", r"tolerance=0.0: expected in \(0, 1\)"),
    ("curvature", "--exclude=Enb", "did you mean Emb"),
    ("frequency", "--against=no/run", "no checkpoint in"),
    ("frequency", "--batches=0", "batches=0: expected at least 1"),
]


@pytest.mark.parametrize("name, words, expected", MISTAKES, ids=lambda value: value.split()[0])
def test_mistakes(llama, name, words, expected):
    with pytest.raises((UserError, ValueError), match=expected):
        command(name, f"--out_dir={llama}", "--device=cpu", *words.split())


def test_more_mistakes(llama, monkeypatch):
    status, _, err = finish(start("sharpnes", script="measure.py"))
    assert (status, err.count("\n")) == (2, 1) and "sharpness" in err
    monkeypatch.setattr(measuring_spectrum, "free_memory", lambda device: 1e6)
    with pytest.raises(UserError, match=r"the 100 Lanczos vectors of full, .* take"):
        spectrum(f"--out_dir={llama}")


def break_checkpoint(small):
    path = out_dir(small) / "ckpt_00000008.pt"
    saved = torch.load(path, weights_only=True)
    saved["model"]["norm_f.weight"][:] = 3e38  # finite, or it would be refused before anything is measured
    torch.save(saved, path)
    manifest = path.with_suffix(".json")
    stated = json.loads(manifest.read_text())
    stated |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(stated))


def test_a_curvature_that_is_not_finite(trained, small, monkeypatch):
    # A spectrum is computed in float64, where no weight of float32 overflows
    with monkeypatch.context() as patch:
        patch.setattr(HessianVectorProduct, "hvp", lambda self, vectors: [v * torch.nan for v in vectors])
        with pytest.raises(UserError, match="step 8: the curvature is not finite"):
            spectrum(trained, *SHORT, "--layers=0")
    break_checkpoint(small)
    with pytest.raises(UserError, match="step 8: the curvature is not finite"):
        sharpness(trained, *FEW)
    with pytest.raises(UserError, match="step 8: the curvature is not finite"):
        curvature(trained, *ON)


# Spectra

SHORT = ("--lanczos_steps=8", "--probes=2", "--batch_size=4", "--device=cpu")


def test_a_spectrum_is_the_hessians(trained, small, no_figures):
    """That of the dense diagonal block of one tensor, on the sequences that the command takes."""
    name = "blocks.1.attn.v_proj.weight"
    spectrum(trained, f"--blocks={name}", "--full=False", "--batch_size=4", "--lanczos_steps=80", "--probes=4")
    block = written(out_dir(small), "spectrum")["blocks"][name]
    saved = torch.load(out_dir(small) / "ckpt_00000008.pt", weights_only=True)
    model = Transformer(ModelConfig(**saved["model_config"])).double()
    model.load_state_dict(saved["model"])
    data = Dataset.open(saved["config"]["data_dir"], saved["config"]["dataset"], 16)
    batch = Batch.sample(data.train, 0, 0, 4, 16, World(0, 1, torch.device("cpu")))
    products = HessianVectorProduct(model, batch, [model.get_parameter(name)])
    dense = torch.linalg.eigvalsh(torch.stack([products(row) for row in torch.eye(products.size).double()])).numpy()
    extremes = [block[key] for key in ("largest", "smallest", "tenth_largest")]
    assert extremes == pytest.approx([dense[-1], dense[0], dense[-10]], rel=1e-6)
    assert abs(block["mean"] - dense.mean()) < 4 * block["error"]
    assert block["power_iteration"]["value"] == pytest.approx(dense[np.abs(dense).argmax()], rel=1e-2)
    assert all(sum(weights) == pytest.approx(1) for weights in block["weights"])


def test_which_blocks(trained, small, capsys, monkeypatch):
    """And all checkpoints, each of which is loaded once."""
    loaded = []

    def counted(path):
        loaded.append(path.name)
        return load_checkpoint(path)

    monkeypatch.setattr(models, "load_checkpoint", counted)
    monkeypatch.setattr(measuring_spectrum, "POWER_PRODUCTS", 10)
    folder = out_dir(small)
    spectrum(trained, *SHORT, "--layers=1")
    matrices = [f"attn.{z}_proj" for z in "qkvo"] + [f"mlp.{z}_proj" for z in ("gate", "up", "down")]
    assert [*written(folder, "spectrum")["blocks"]] == [*(f"blocks.1.{name}.weight" for name in matrices), "full"]
    assert "is not compared" in capsys.readouterr().out  # 8 steps leave Q and K no tenth eigenvalue above 0
    words = ("--blocks=FFN,*.o_proj.*", "--full=False", "--lanczos_steps=20", "--checkpoints=all")
    spectrum(trained, *SHORT, *words)
    assert loaded[1:] == [f"ckpt_{step:08d}.pt" for step in (0, 4, 8)]
    assert "(JS0)" in capsys.readouterr().out
    steps = [written(folder, "spectrum", step) for step in (0, 4, 8)]
    assert len({result["js"]["mean"] for result in steps}) == 3
    blocks, js = steps[-1]["blocks"], steps[-1]["js"]
    assert list(blocks) == ["FFN", *(f"blocks.{layer}.attn.o_proj.weight" for layer in (0, 1))]
    assert blocks["FFN"]["parameters"] == 6 * 16 * 64
    distances = np.array(js["distances"])
    assert distances.shape == (3, 3) and (distances == distances.T).all() and (np.diag(distances) == 0).all()
    assert js["mean"] == pytest.approx(distances[np.triu_indices(3, 1)].mean()) and js["noise"] > 0
    for name in ("spectrum.png", "spectrum_distances.png"):
        assert coloured(folder / name) > 1000


def test_spectra_while_layers_are_put_to_work(small, no_figures):
    """A later checkpoint of an architecture warm-up has more to measure. Lanczos has a step for each parameter."""
    run(*small, *LLAMA, "--arch_warmup=True", "--arch_warmup_groups=1", "--warmup_iters=6")
    words = ("--probes=1", "--batch_size=2", "--blocks=*.norm1.*", "--full=False", "--checkpoints=all")
    spectrum(f"--out_dir={out_dir(small)}", *words)
    steps = [written(out_dir(small), "spectrum", step)["blocks"] for step in (0, 4, 8)]
    assert [len(blocks) for blocks in steps] == [1, 1, 2]
    assert {block["lanczos_steps"] for block in steps[2].values()} == {16}


@pytest.mark.slow
def test_spectra_on_two_processes_and_cut(trained, small, no_figures):
    blocks = "--blocks=VO,blocks.0.attn.q_proj.weight"
    words = (trained, blocks, "--full=False", "--lanczos_steps=20", "--probes=2", "--batch_size=5", "--device=cpu")
    spectrum(*words)
    whole = written(out_dir(small), "spectrum")
    spectrum(*words, "--micro_batch=2")
    for other in (written(out_dir(small), "spectrum"), on_two_processes(small, "spectrum", *words)):
        assert other["seconds"] != whole["seconds"]
        assert np.allclose(other["js"]["distances"], whole["js"]["distances"], rtol=1e-4, atol=0)
        for name, block in whole["blocks"].items():
            for key in ("mean", "largest", "smallest"):
                assert other["blocks"][name][key] == pytest.approx(block[key], rel=1e-4), (name, key)
            for a, b in zip(block["nodes"], other["blocks"][name]["nodes"], strict=True):
                assert np.allclose(a, b, rtol=0, atol=1e-4 * max(map(abs, a)))


def on_two_processes(small, name, *words):
    status, _, err = finish(Fork(name, *words, processes=2, script="measure.py"))
    assert status == 0, err
    return written(out_dir(small), name)


# The largest eigenvalues

ON = ("--batch_size=3", "--device=cpu", "--tolerance=1e-4")


def test_eigenvalues_of_all_checkpoints(trained, small, capsys):
    assert curvature(trained, *ON, "--checkpoints=all") == 0
    folder = out_dir(small)
    start, middle, end = (written(folder, "curvature", step) for step in (0, 4, 8))
    assert "preconditioned" not in start and "no preconditioned one" in capsys.readouterr().out
    for one in (start["hessian"], middle["hessian"], middle["preconditioned"], end["preconditioned"]):
        assert one["converged"] and 0 <= one["residual"] <= 1e-4 * one["lambda_max"] and one["products"] < 300
    assert middle["preconditioned"]["lambda_max"] != end["preconditioned"]["lambda_max"] > end["hessian"]["lambda_max"]
    one = middle["preconditioned"]
    assert one["lr_lambda"] == one["lr"]["Norm"] * one["lambda_max"] and one["threshold"] == pytest.approx(38)
    assert one["lr"] == {block: metrics(small)[4][f"lr/{block}"] for block in one["lr"]} and len(one["lr"]) == 6
    assert coloured(folder / "curvature.png") > 1000


def test_eigenvalues_in_pieces(trained, small, no_figures):
    curvature(trained, *ON)
    whole = written(out_dir(small), "curvature")
    curvature(trained, *ON, "--micro_batch=1")
    cut = written(out_dir(small), "curvature")
    for kind in ("hessian", "preconditioned"):
        assert cut[kind]["converged"]
        assert cut[kind]["lambda_max"] == pytest.approx(whole[kind]["lambda_max"], rel=1e-4)


@pytest.mark.slow
def test_eigenvalues_on_two_processes(trained, small, no_figures):
    curvature(trained, *ON)
    alone, shared = written(out_dir(small), "curvature"), on_two_processes(small, "curvature", trained, *ON)
    assert shared["seconds"] != alone["seconds"]
    for kind in ("hessian", "preconditioned"):
        assert shared[kind]["lambda_max"] == pytest.approx(alone[kind]["lambda_max"], rel=1e-4)


PER_BLOCK = ("--block_beta2.Emb=0.999", "--block_beta2.QK=0.5")


BY_RULE = [("adamw", (f"--lr_rule={rule}",)) for rule in RULES]


@pytest.mark.parametrize("optimizer, keys", [("adamw", PER_BLOCK), ("adam_mini", PER_BLOCK), *BY_RULE])
def test_the_preconditioner_is_the_one_that_trained(optimizer, keys):
    """measure.py's optimizer has training's preconditioner, for every rule and with a beta2 per block."""
    words = ["--model_type=llama", "--n_layer=1", "--n_head=2", "--n_embd=8", "--vocab_size=64", "--block_size=4"]
    words += ["--batch_size=1", "--gradient_accumulation_steps=1"]  # few tokens a step: `relative` sets beta2 too
    config = configure(TrainConfig, [*words, f"--optimizer={optimizer}", *keys], "")[0].resolved()
    models = [Transformer(ModelConfig.of(config)) for _ in range(2)]
    trained = train.make_optimizer(config, models[0], config.lr_mult)
    for step in range(3):
        for group in trained.param_groups:
            group["lr"] = block_rate(config, step, group["lr_mult"])
        for p in models[0].parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        trained.step()
    saved = {"config": asdict(config), "step": 3, "optimizer": trained.state_dict()}
    measured = saved_optimizer(saved, models[1])
    pairs = zip(preconditioner(trained).values(), preconditioner(measured).values(), strict=True)
    assert all(torch.equal(ours, loaded) for ours, loaded in pairs)
    assert [g["lr_mult"] for g in measured.param_groups] == [g["lr_mult"] for g in trained.param_groups]


def test_eigenvalues_of_other_optimizers(small, no_figures):
    folder, words = out_dir(small), (f"--out_dir={out_dir(small)}", *ON)
    run(*small, "--optimizer=sgd", "--learning_rate=1e-2", "--blockwise=False", "--max_iters=2")
    curvature(*words)
    found = written(folder, "curvature", 2)
    for key in ("lambda_max", "residual"):  # P and R are 1
        assert found["preconditioned"][key] == pytest.approx(found["hessian"][key], rel=1e-3, abs=1e-4)
    assert found["preconditioned"]["threshold"] == pytest.approx(3.8)
    run(*small, "--optimizer=muon", "--max_iters=2")
    curvature(*words)
    assert "preconditioned" not in written(folder, "curvature", 2)


# Loss by frequency of the token


def test_parts_by_frequency():
    """Ten tokens of equal mass are a part each; the frequent ones of an uneven text leave parts empty."""
    assert frequency.parts(np.array([5, 5, 5, 5, 5, 5, 5, 5, 5, 5])).tolist() == list(range(10))
    # 1 % rare, then 9 % and 90 %: the middles are 0.5, 5.5 and 55 % of the text
    assert frequency.parts(np.array([90, 0, 9, 1])).tolist() == [5, 0, 0, 0]
    assert frequency.parts(np.array([40, 15, 45])).tolist() == [3, 0, 7]


def test_mean_and_error_of_parts():
    totals = torch.tensor([[2.0, 0.0], [4.0, 0.0], [9.0, 0.0]])
    numbers = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    mean, error = frequency.mean_and_error(totals, numbers)
    # residuals -0.5, -1 and 1.5 of a ratio estimate over 6 positions
    assert mean[0] == 2.5 and error[0].item() == pytest.approx((3.5 * 3 / 2) ** 0.5 / 6)
    assert mean[1].isnan() and frequency.plain(mean[1]) is None


def test_loss_by_frequency_against_another_run(trained, small, tmp_path, capsys):
    """The parts add up to the run's own validation loss, and a run differs from itself by nothing."""
    other = tmp_path / "other"
    shutil.copytree(out_dir(small), other)
    assert command("frequency", trained, f"--against={other}", "--device=cpu") == 0
    result = written(out_dir(small), "frequency")
    assert result["all"]["loss"] == pytest.approx(metrics(small)[8]["val/loss"], rel=1e-5)
    positions = [row["positions"] for row in result["parts"]]
    assert sum(positions) == 8 * 16  # 4 batches of 2 sequences
    mean = sum(row["loss"] * row["positions"] for row in result["parts"]) / sum(positions)
    assert mean == pytest.approx(result["all"]["loss"])
    assert {row["difference"] for row in result["parts"]} == {0.0} == {result["all"]["difference_error"]}
    assert sum(row["tokens"] for row in result["parts"]) <= 256 and result["training_tokens"] == 18000
    assert all(row["least"] <= row["most"] for row in result["parts"])
    assert (out_dir(small) / "frequency.png").read_bytes()[:4] == b"\x89PNG"
    assert "difference +0.0000" in capsys.readouterr().out

    args = ("--checkpoints=all", "--batches=3", "--batch_size=2", "--device=cpu")
    for path in other.glob("ckpt_00000004*"):  # of this step there is nothing to compare with
        path.unlink()
    command("frequency", trained, f"--against={other}", *args)
    found_at = [written(out_dir(small), "frequency", step) for step in (0, 4, 8)]
    assert [found["against"] is None for found in found_at] == [False, True, False]
    assert {found["sequences"] for found in found_at} == {6}
    assert found_at[0]["all"]["loss"] > found_at[2]["all"]["loss"]
