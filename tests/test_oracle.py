"""Products, Fisher and spectra against another implementation, the package hessian-eigenthings, in float64."""

import pytest
import torch
import torch.nn.functional as F
from explicit import MODELS, explicit_fisher, make, make_batch, slices

from blockwise.blocks import blocks_of
from blockwise.curvature.eigenvalues import lanczos
from blockwise.curvature.hessian import HessianVectorProduct, double_backward_mode

pytest.importorskip("hessian_eigenthings", reason="needs the package hessian-eigenthings")

from hessian_eigenthings.algorithms.lanczos import lanczos as their_lanczos
from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal
from hessian_eigenthings.operators.ggn import GGNOperator
from hessian_eigenthings.operators.hessian import HessianOperator


def within(block):
    """Their filter for the parameters of one block type; all, where it is None."""

    def chosen(name, _):
        return any(name == member for member, _ in block)

    return None if block is None else chosen


def their_hessian(model, batch, block=None):
    return HessianOperator(model, [(batch.x, batch.y)], lambda m, b: m(*b), param_filter=within(block))


def their_ggn(model, batch, block=None):
    """Of the mean cross-entropy, whose Gauss-Newton matrix is the Fisher."""
    return GGNOperator(
        model, [(batch.x, batch.y)], lambda m, b: m(b[0]),
        lambda logits, b: F.cross_entropy(logits.flatten(0, 1), b[1].flatten()), param_filter=within(block),
    )  # fmt: skip


def start(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("model_type,tied", MODELS)
def test_hessian_products_of_every_block(model_type, tied):
    model, batch = make(model_type, tied), make_batch()
    for block in (None, *blocks_of(model).values()):
        params = [p for _, p in block] if block else list(model.parameters())
        ours = HessianVectorProduct(model, batch, params)
        v = start(ours.size)
        with double_backward_mode(model):
            theirs = their_hessian(model, batch, block).matvec(v)
        assert torch.allclose(ours(v), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model_type,tied", MODELS)
def test_the_fisher_is_the_gauss_newton_matrix(model_type, tied):
    """The explicit Fisher, which the estimator is held against, has their diagonal: each tensor's largest entry."""
    model, batch = make(model_type, tied), make_batch()
    fisher, theirs = explicit_fisher(model, batch), their_ggn(model, batch)
    for where in slices(model).values():
        entry = where.start + int(fisher[where].argmax())
        unit = F.one_hot(torch.tensor(entry), theirs.size).double()
        with double_backward_mode(model):
            found = theirs.matvec(unit)[entry].item()
        assert found == pytest.approx(fisher[entry].item(), rel=1e-9)


@pytest.mark.parametrize("model_type,tied", MODELS)
def test_lanczos_and_the_largest_eigenvalue(model_type, tied):
    """From the same start the same Ritz values; from another the same largest eigenvalue."""
    model, batch = make(model_type, tied), make_batch()
    ours, theirs = HessianVectorProduct(model, batch, model.parameters()), their_hessian(model, batch)
    with double_backward_mode(model):
        expected = lanczos_tridiagonal(theirs, start(ours.size), 20)
        largest = their_lanczos(theirs, max_iter=60, k=1, reorthogonalize=True, seed=1)
    beside = expected.betas[:19].diag(1)
    ritz = torch.linalg.eigvalsh(expected.alphas.diag() + beside + beside.T)
    assert lanczos(ours, start(ours.size), 20).values == pytest.approx(ritz.numpy(), rel=1e-8, abs=1e-10)
    assert largest.converged.all()  # it returns its last guess otherwise
    values = lanczos(ours, start(ours.size), 60).values
    assert max(values, key=abs) == pytest.approx(largest.eigenvalues.item(), rel=1e-6)
