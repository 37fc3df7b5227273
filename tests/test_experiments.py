"""The small experiments at tiny sizes: their arithmetic against theory, and that they run from end to end."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers import coloured, study_of_draws, study_of_lines

sys.path.insert(0, str(ROOT / "experiments"))

import maps
import quadratic as quad
import ratios

from blockwise import UserError


def rows_of(text):
    """The cells of every line of a Markdown table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


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
        kappa, losses = found[case]["blockwise GD"]
        assert kappa == pytest.approx(slowest)
        assert [quad.rate(curve) for curve in losses.T] == pytest.approx([quad.theory(slowest)] * 2, rel=0.02)
    kappas, losses = found["case 3: heterogeneous"]["Adam, β2 = 1"]
    assert [quad.rate(curve) for curve in losses.T] == pytest.approx([quad.theory(k) for k in kappas], rel=0.02)
    for optimizers in found.values():  # the rate is that of the worst start: none is slower
        kappa, losses = optimizers["GD"]
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


def test_quadratic_from_end_to_end(tmp_path, capsys):
    quad.main(["--iterations=30", "--starts=2", "--size=4", "--grid=3", f"--results={tmp_path}"])
    rows = {(row[0], row[1]): row[2:] for row in rows_of(capsys.readouterr().out)}
    arrived, _, kappa, measured, predicted = rows["case 3: heterogeneous", "blockwise GD"]
    assert int(arrived) < 30 and kappa == "3" and float(measured) == pytest.approx(float(predicted), rel=0.02)
    assert rows["case 2: homogeneous", "GD"][0] == "above 30" and len(rows) == 2 + 4 * 4
    assert coloured(tmp_path / "quadratic.png") > 1000
    for key, value in (("iterations", 1), ("starts", 0), ("condition", 1.0), ("condition", 2001.0)):
        with pytest.raises(UserError, match=f"{key}={value}: expected"):
            quad.QuadraticConfig(**{key: value})


def test_what_the_rates_want_to_be(tmp_path, capsys):
    study_of_draws(tmp_path)
    ratios.main([str(tmp_path)])
    tables = []  # the second and the third one both have the shares of the run as their rows
    for row in rows_of(capsys.readouterr().out):
        if row[0] == "factor" or row[0].endswith(" at"):
            tables.append({})
        tables[-1][row[0]] = row[1:]
    factors, sharpness, slopes = tables
    assert [float(factors[block][3]) for block in ("Emb", "QK", "Norm")] == pytest.approx([8e-3, 2e-3, 5e-4], rel=0.1)
    assert float(factors["warmup_iters"][2]) < 0.02 < 0.2 < float(factors["Emb"][2])
    assert [float(x) for x in sharpness["2%"]] == pytest.approx([256, 16, 1, 0.5, 1], rel=0.25)
    assert [float(x) for x in slopes["2%"]] == pytest.approx([0, -1, 0], abs=0.01)
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
    found = {row[0]: row[1:] for row in rows_of(capsys.readouterr().out)}
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
