"""The small experiments at tiny sizes: their arithmetic against theory, and that they run from end to end."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, Fork, finish, out_dir, run
from helpers import coloured, filled, study_of_draws, study_of_lines

sys.path.insert(0, str(ROOT / "experiments"))

import heterogeneity as het
import maps
import quadratic as quad
import ratios
from heterogeneity_report import js_words

from blockwise import UserError
from blockwise.curvature.spectra import Spectrum

FEW = {"train_steps": 2, "lanczos_steps": 16, "probes": 2, "examples": 16}


def test_the_problems_have_the_spectra_that_they_state():
    for spectra in quad.cases(5, 100.0).values():
        assert (spectra.min(), spectra.max()) == (pytest.approx(1), pytest.approx(2000))
        H, x = quad.problem(spectra, 2, np.random.default_rng(0))
        assert np.linalg.eigvalsh(H) == pytest.approx(np.stack([spectra] * 2))
        assert x.shape == (2, *spectra.shape, 1)


def test_rates_are_those_of_theory():
    """Blockwise GD falls at the rate of its slowest block; Adam with a fixed preconditioner at that one's."""
    config = quad.QuadraticConfig(iterations=1000, starts=2, size=6, grid=2)
    found = {case: quad.run(spectra, config) for case, spectra in quad.cases(6, 100.0).items()}
    for case, slowest in (("case 1: heterogeneous", 100), ("case 3: heterogeneous", 3)):
        _, kappa, losses = found[case]["blockwise GD"]
        assert kappa == pytest.approx(slowest)
        assert [quad.rate(curve) for curve in losses.T] == pytest.approx([quad.theory(slowest)] * 2, rel=0.02)
    _, kappas, losses = found["case 3: heterogeneous"]["Adam, β2 = 1"]
    assert [quad.rate(curve) for curve in losses.T] == pytest.approx([quad.theory(k) for k in kappas], rel=0.02)
    for optimizers in found.values():  # the rate is that of the worst start: none is slower
        _, kappa, losses = optimizers["GD"]
        assert kappa == pytest.approx(2000) and all(quad.rate(curve) > 0.999 * quad.theory(2000) for curve in losses.T)


def test_steps_by_hand():
    """f = x^2 from x = 1: GD halves x at step 1/4; Adam moves by the step, then by what the second moment says."""
    H, x = np.full((1, 1, 1, 1), 2.0), np.ones((1, 1, 1, 1))
    assert quad.descend(H, x, np.full((1, 1, 1, 1), 0.25), 2).ravel() == pytest.approx([1, 0.25, 0.0625])
    second = 0.9 * 2**2 + 0.1 * 1.8**2
    after = 0.9 - 0.1 * 1.8 / second**0.5
    losses = quad.descend(H, x, np.full((1, 1, 1, 1), 0.1), 2, beta2=0.9).ravel()
    assert losses == pytest.approx([1, 0.9**2, after**2])


def test_arrival_is_for_good():
    above, below = 1.0, 1e-9
    curves = np.array([[above, above, above, below], [below, below, above, below], [below, above, below, below]])
    assert quad.arrival(curves).tolist() == [1, np.inf, 2, 0]


def test_quadratic_from_the_command_line(tmp_path):
    words = ("--iterations=30", "--starts=2", "--size=4", "--grid=3", f"--results={tmp_path}")
    status, out, err = finish(Fork(*words, script="experiments/quadratic.py"))
    assert status == 0, err
    found = json.loads((tmp_path / "quadratic.json").read_text())
    assert len(found["cases"]) == 4 and "x blockwise GD" in out
    assert found["cases"]["case 3: heterogeneous"]["blockwise GD"]["iterations_to_target"] < 30
    assert coloured(tmp_path / "quadratic.png") > 1000
    for key, value in (("iterations", 1), ("starts", 0), ("condition", 1.0), ("condition", 2001.0)):
        with pytest.raises(UserError, match=f"{key}={value}: expected"):
            quad.QuadraticConfig(**{key: value})


def test_a_scale_multiplies_every_layer():
    """Without biases a ReLU network is homogeneous: four layers times c are the output times c^4."""
    torch.manual_seed(0)
    model, x = het.MLP((1, 4, 4), 10, 1), torch.randn(3, 1, 4, 4)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.bias)
    once = model(x)
    model.scale = 3
    assert torch.allclose(model(x), 81 * once, rtol=1e-4)


def test_spectra_are_those_of_the_layers_dense_hessian():
    torch.manual_seed(0)
    model, config = het.CNN((1, 8, 8), 3).double(), het.HeterogeneityConfig(lanczos_steps=200, probes=20)
    x, y = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.randint(3, (16,))
    found = het.spectra(model, het.Batch(x, y, list(range(16)), 16), ["output.weight"], config)["output.weight"]
    assert found.n == 48  # fewer than the Lanczos steps

    def loss(weight):
        return torch.func.functional_call(model, {"output.weight": weight.view(3, 16)}, (x, y))

    H = torch.autograd.functional.hessian(loss, model.output.weight.detach().flatten())
    assert found.largest() == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-6)
    mean, error = found.moment()
    assert abs(mean - H.trace().item() / 48) < 4 * error


def test_where_there_are_no_ten_eigenvalues():
    """A saturated softmax leaves a Hessian of low rank, whose tenth eigenvalue is rounding: nothing to normalise by."""
    rank_nine = Spectrum(12, [np.r_[-1e-16, 0, 2e-16, np.arange(1.0, 10)]] * 2, [np.full(12, 1 / 12)] * 2)
    rank_ten = Spectrum(12, [np.r_[0, 2e-16, np.arange(1.0, 11)]] * 2, [np.full(12, 1 / 12)] * 2)
    low, full = (het.distances({"a": one, "b": rank_ten}) for one in (rank_nine, rank_ten))
    assert low["js0"] is None and low["largest"] == [9, 10]
    assert full["js0"] == full["noise"] == 0
    assert js_words([low, full]) == ("0.000; 1 not defined", "0.00", "1.06 (1 to 1.11)")


def test_a_sweep_goes_on_beyond_the_papers_grid(monkeypatch):
    seen = []

    def train(model, data, optimizer, rate, steps, seed):
        seen.append((rate, seed))
        return abs(np.log10(rate / 1e-6)), seed / 10

    monkeypatch.setattr(het, "train", train)
    found = het.compare(lambda: None, None, "SGD", het.HeterogeneityConfig(seeds=3))
    assert found["own"]["rate"] == pytest.approx(1e-6) and found["paper"]["rate"] == pytest.approx(1e-4)
    assert found["own"]["accuracies"] == [0, 0.1, 0.2] and len(seen) == 7 + 5 + 2 * 2


def test_training_learns_and_a_run_that_diverges_has_no_loss():
    data = het.images("digits")
    assert [len(part) for part in data] == [1437, 1437, 360, 360] and data[0].mean().abs() < 1e-5
    for optimizer, rate in (("SGD", 0.03), ("Adam", 0.003)):
        loss, accuracy = het.train(het.seeded(lambda: het.MLP((1, 8, 8), 10, 1), 0), data, optimizer, rate, 60, 0)
        assert loss < 1 and accuracy > 0.7
    assert het.train(het.MLP((1, 8, 8), 10, 15), data, "SGD", 10.0, 5, 0)[0] == np.inf


@pytest.mark.slow
def test_heterogeneity_from_end_to_end(small, tmp_path, capsys, monkeypatch):
    run(*small, "--model_type=llama")
    for grid in ("PAPER_GRID", "WIDEST"):
        monkeypatch.setattr(het, grid, range(-6, -3))
    folders = {"out_dir": str(out_dir(small)), "results": str(tmp_path / "results")}
    het.main([f"--{key}={value}" for key, value in {**FEW, **folders, "seeds": 2, "scales": "1,3"}.items()])
    found = json.loads((tmp_path / "results/heterogeneity.json").read_text())
    assert set(found) == {"config", "MLP, c=1", "MLP, c=3", "CNN", "transformer"}
    assert len(found["CNN"]["seeds"]) == 2 and 0 < found["CNN"]["seeds"][0]["js0"] < 1
    blocks = found["transformer"]["trained"]["blocks"]
    assert {"tok_emb.weight", "lm_head.weight", "blocks.1.attn.q_proj.weight"} <= set(blocks) and len(blocks) == 9
    assert found["transformer"]["trained"]["largest"] != found["transformer"]["initialization"]["largest"]
    out = capsys.readouterr().out
    for expected in ("| CNN | Adam |", "each at its own best rate:\n  c=1: ", "transformer, trained: "):
        assert expected in out
    for name in ("heterogeneity", "heterogeneity_spectra"):
        assert coloured(tmp_path / f"results/{name}.png") > 100
    assert filled(tmp_path / "results/heterogeneity_js.png") > 0.1


def test_without_a_checkpoint(tmp_path, capsys):
    """The transformer is left out where nobody asked for it by name, and is a mistake where somebody did."""
    config = het.HeterogeneityConfig(out_dir=str(tmp_path / "none"))
    assert het.transformer_if_there(config) == ({}, {})
    assert "transformer: left out, no checkpoint" in capsys.readouterr().out
    words = ("--parts=transformer", f"--out_dir={tmp_path / 'none'}", f"--results={tmp_path}")
    status, _, err = finish(Fork(*words, script="experiments/heterogeneity.py"))
    assert (status, err.count("\n")) == (2, 1) and "no checkpoint" in err


def test_mnist(monkeypatch):
    """In the form that the hub has it in: pictures and labels."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    pictures = np.random.default_rng(0).integers(256, size=(6, 28, 28), dtype=np.uint8)
    made = {"image": list(pictures), "label": [3, 1, 4, 1, 5, 9]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    split = datasets.Dataset.from_dict(made, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": split, "test": split})
    x, y, test_x, test_y = het.images("mnist")
    assert x.shape == test_x.shape == (6, 1, 28, 28) and y.tolist() == test_y.tolist() == made["label"]
    expected = (pictures - pictures.mean()) / pictures.std(ddof=1)
    assert torch.allclose(x.squeeze(1), torch.from_numpy(expected).float(), atol=1e-5)


def test_mnist_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")

    def unreachable(name):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"MNIST cannot be reached \(.*no network\): --data=digits needs no network"):
        het.images("mnist")


@pytest.mark.parametrize("key,value", [("probes", 1), ("examples", 0), ("seeds", 0), ("scales", [0])])
def test_mistakes(key, value):
    with pytest.raises(UserError, match=f"{key}="):
        het.HeterogeneityConfig(**{key: value})


def test_what_the_rates_want_to_be(tmp_path):
    study_of_draws(tmp_path)
    status, out, err = finish(Fork(tmp_path, script="experiments/ratios.py"))
    assert status == 0, err
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    table, named = "", {}
    for row in filter(None, rows):  # the second and the third table both begin with shares of the run
        table = row[0].split()[0] if row[0].endswith(" at") else table
        named[f"{table.removesuffix('_Norm')} {row[0]}" if row[0].endswith("%") else row[0]] = row[1:]
    rows = named
    assert [float(rows[block][3]) for block in ("Emb", "QK", "Norm")] == pytest.approx([8e-3, 2e-3, 5e-4], rel=0.1)
    assert float(rows["warmup_iters"][2]) < 0.02 < 0.2 < float(rows["Emb"][2])
    assert [float(x) for x in rows["S 2%"]] == pytest.approx([256, 16, 1, 0.5, 1], rel=0.25)
    assert [float(x) for x in rows["slope 2%"]] == pytest.approx([0, -1, 0], abs=0.01)
    assert coloured(tmp_path / "ratios.png") > 1000


def test_too_few_draws_are_said(tmp_path):
    study_of_draws(tmp_path, 10)
    with pytest.raises(UserError, match="10 draws of 4 factors: expected at least 11"):
        ratios.main([str(tmp_path)])
    with pytest.raises(UserError, match="holds no study"):
        ratios.main([str(tmp_path / "0")])


@pytest.mark.parametrize("conditions", [("",), ("width 32", "width 64")])
def test_maps_find_the_best_rates(tmp_path, capsys, conditions):
    study_of_lines(tmp_path, conditions)
    maps.main([str(tmp_path)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: row[1:] for row in rows if len(row) > 2}
    one = len(conditions) == 1
    assert found["0.02" if one else "0.02, width 32"][:2] == ["0.008", "4.000"]
    assert found["1" if one else "1, width 64"][0] == "at least 0.016"
    assert found["tables" if one else "width 64"][0] == "0.003"
    assert coloured(tmp_path / "maps.png") > 1000


def test_maps_mistakes(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        maps.main([str(tmp_path)])
    found = {"places": {"": {"adamw": {"mean": 1.0}}}, "study": {"baseline": "adamw"}}
    (tmp_path / "study.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="no arm is named like"):
        maps.main([str(tmp_path)])
