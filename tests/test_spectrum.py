"""Lanczos, quadrature, power iteration and distances against dense eigenvalues, in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from blockwise.curvature.eigenvalues import lanczos, largest_eigenvalue, power_iteration
from blockwise.curvature.spectra import BIN_EDGES, Spectrum, js_distance, js_distances, js_noise, quadrature


def matrix(values, seed=0):
    """A symmetric matrix with these eigenvalues, in float64."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed), dtype=torch.float64))
    return q @ torch.diag(values) @ q.T


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(n, seed=1):
    return torch.randn(n, generator=generator(seed), dtype=torch.float64)


VALUES = np.concatenate([np.linspace(-1, 1, 76), [5.0, 20.0, 50.0, 100.0]])


def test_all_steps_give_all_eigenvalues():
    H = matrix(VALUES)
    done = lanczos(lambda v: H @ v, start(80), 80)
    assert np.allclose(done.values, np.sort(VALUES), atol=1e-9)
    assert done.last < 1e-9
    eye = done.basis @ done.basis.T
    assert torch.allclose(eye, torch.eye(len(eye), dtype=torch.float64), atol=1e-12)
    few = lanczos(lambda v: H @ v, start(80), 30)  # the ends of the spectrum come first
    assert few.values[-4:] == pytest.approx([5, 20, 50, 100], rel=1e-6)


def test_orthogonal_in_float32_where_plain_lanczos_is_not():
    values = np.concatenate([np.linspace(0, 1e-3, 180), 10.0 ** np.arange(20) / 1e10])
    H = matrix(values).float()
    done = lanczos(lambda v: H @ v, start(200).float(), 100)
    eye = done.basis @ done.basis.T
    assert (eye - torch.eye(len(eye))).abs().max() < 1e-5
    found = done.values
    assert found[-1] == pytest.approx(1e9, rel=1e-5) and (found > 5e8).sum() == 1  # no ghost copies


def test_a_small_krylov_space_ends_it_cleanly():
    H = matrix([1.0] * 30 + [2.0] * 30 + [7.0] * 20)
    done = lanczos(lambda v: H @ v, start(80), 50)
    assert done.values == pytest.approx([1, 2, 7]) and done.last == 0
    zero = lanczos(lambda v: 0 * v, start(80), 50)
    assert zero.values == pytest.approx([0.0]) and len(zero.basis) == 1


def test_a_product_that_is_not_finite():
    with pytest.raises(FloatingPointError, match="not finite"):
        lanczos(lambda v: v * math.nan, start(80), 5)


def test_quadrature_has_mass_one_and_the_moments():
    H = matrix(VALUES)
    spectrum = quadrature(lambda v: H @ v, 80, 40, 30, generator(), dtype=torch.float64)
    assert all(w.sum() == pytest.approx(1) for w in spectrum.weights)
    for power in (1, 2, 3):
        mean, error = replace(spectrum, nodes=[x**power for x in spectrum.nodes]).mean()
        assert abs(mean - np.mean(VALUES**power)) < 4 * error
    assert spectrum.largest() == pytest.approx(100, rel=1e-6) and spectrum.smallest == pytest.approx(-1, rel=1e-2)
    assert spectrum.largest(4) == pytest.approx(5, rel=1e-6)


def test_quadrature_is_the_generators():
    H = matrix(VALUES)

    def nodes_and_starts(seed):
        seen = []

        def product(v):
            seen.append(v.clone())
            return H @ v

        found = quadrature(product, 80, 10, 2, generator(seed), dtype=torch.float64)
        return np.concatenate(found.nodes), torch.stack(seen[::10])  # ten products a probe

    nodes, starts = zip(*map(nodes_and_starts, (1, 1, 2)), strict=True)
    assert (nodes[0] == nodes[1]).all() and torch.equal(starts[0], starts[1])
    # Of two seeds the starts, not the nodes: an eigenvalue that has converged is the same number from every start
    apart = torch.cat([starts[0], starts[2]])  # unit vectors in 80 dimensions, whose products are 0.11 on average
    assert (apart @ apart.T - torch.eye(4, dtype=torch.float64)).abs().max() < 0.5


def test_the_standard_error_is_right():
    """Over many quadratures the truth lies within two standard errors about as often as it should."""
    H = matrix(VALUES)
    hits = 0
    for seed in range(100):
        mean, error = quadrature(lambda v: H @ v, 80, 3, 10, generator(seed), dtype=torch.float64).mean()
        hits += abs(mean - VALUES.mean()) < 2 * error
    assert 80 <= hits <= 100


def test_power_iteration():
    H = matrix([*np.linspace(-1, 1, 50), -8.0, 6.0])
    found = power_iteration(lambda v: H @ v, start(52), 500, 1e-8)
    assert found.converged and found.value == pytest.approx(-8, rel=1e-9)  # the largest magnitude, not the largest
    assert torch.allclose(H @ found.vector, found.value * found.vector, atol=1e-6)
    short = power_iteration(lambda v: H @ v, start(52), 3, 1e-8)
    assert not short.converged and short.products == 3 and short.residual > 1e-8 * abs(short.value)
    assert power_iteration(lambda v: 0 * v, start(52)).converged


def test_largest_eigenvalue():
    H = matrix([*np.linspace(-1, 1, 50), -8.0, 5.9, 6.0])
    calls = []
    found = largest_eigenvalue(lambda v: (calls.append(1), H @ v)[1], start(53), 500, 1e-8, dimension=8)
    assert found.converged and found.value == pytest.approx(6, rel=1e-12)  # not -8, and across restarts
    assert found.products == len(calls) > 8 and found.vector.norm().item() == pytest.approx(1)
    residual = (H @ found.vector - found.value * found.vector).norm().item()
    assert residual == pytest.approx(found.residual, rel=1e-3, abs=1e-12)  # both may be rounding
    short = largest_eigenvalue(lambda v: H @ v, start(53), 5, 0.0)
    assert not short.converged and short.products == 5
    assert min(abs(short.value - 6), abs(short.value - 5.9)) <= short.residual
    again = largest_eigenvalue(lambda v: H @ v, short.vector, 5, 0.0)  # a warm start goes on
    assert short.value < again.value <= 6 + 1e-9 and again.residual < short.residual
    assert short.value == pytest.approx(lanczos(lambda v: H @ v, start(53), 5).values[-1], rel=1e-12)
    exact = largest_eigenvalue(lambda v: H @ v, start(53), 1000, 0.0, dimension=53)
    assert exact.value == pytest.approx(6) and largest_eigenvalue(lambda v: -v, start(9), 5, 0.0).products == 1
    with pytest.raises(FloatingPointError, match="not finite"):
        largest_eigenvalue(lambda v: v * math.nan, start(9), 5)


def test_js_distance():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    assert js_distance(p, p) == 0
    assert js_distance(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(1, abs=1e-12)
    assert js_distance(p, q) == js_distance(q, p) == pytest.approx(math.sqrt(0.5))


def point(*values):
    """A spectrum of eigenvalues that are known exactly."""
    values = np.array(values, dtype=float)
    return Spectrum(len(values), [values], [np.full(len(values), 1 / len(values))])


def test_js_distances_do_not_see_the_scale():
    values = np.linspace(0.1, 3, 40)
    table, mean = js_distances([point(*values), point(*(1e4 * values)), point(*(values**6))])
    assert table[0, 1] == pytest.approx(0, abs=1e-12) and 0.2 < table[0, 2] < 1
    assert (table == table.T).all() and mean == pytest.approx((2 * table[0, 2] + table[0, 1]) / 3)
    assert js_distances([])[0].shape == (0, 0)
    assert point(*values).has_ten and not point(*[1e-12] * 30, 1.0, 2.0).has_ten


def test_a_histogram_spreads_a_node_over_the_way_to_its_neighbours():
    shares = point(-1e9, -1.0, 0.0, 1.0, 1e9).histogram(np.array([-np.inf, -1, -0.5, 0, 2, np.inf]))
    assert shares == pytest.approx([0.3, 0.1, 0.1, 0.2, 0.3], abs=1e-6)
    shares = point(-1e9, -1e-9, 0.0, 1e-9, 1e9).histogram(BIN_EDGES)
    assert shares.sum() == pytest.approx(1) and len(shares) == len(BIN_EDGES) - 1
    assert shares[len(shares) // 2] == pytest.approx(0.4, abs=1e-6)  # around zero
    assert point(-2.0, 3.0).histogram(BIN_EDGES, 1e9)[len(shares) // 2] == pytest.approx(1)


def test_distances_are_those_of_the_spectra_not_of_the_probes():
    """The bulk near zero lies in one or two nodes, whose places differ by probe: that must not be what is measured."""
    rng = np.random.default_rng(0)
    outliers = np.geomspace(0.1, 1, 30)
    steep = np.concatenate([1e-3 * rng.standard_normal(370), outliers])
    flat = np.concatenate([np.abs(0.05 * rng.standard_normal(370)), outliers])
    found = []
    for values, seed in ((steep, 0), (steep, 1), (flat, 2)):
        H = matrix(values, seed)
        found.append(quadrature(lambda v, H=H: H @ v, 400, 25, 10, generator(seed), dtype=torch.float64))
    table, _ = js_distances(found)
    assert table[0, 1] < 0.2 and min(table[0, 2], table[1, 2]) > 2 * table[0, 1]
    assert table[0, 1] < js_noise(found[:1]) < 0.3  # halves are noisier, and no better than the whole
