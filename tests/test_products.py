"""oneDNN's products against torch's own. Where the processor is not AMD's, the operator is tested all the same."""

import pytest
import torch
import torch.nn.functional as F
from conftest import losses, run

from blockwise import matmul
from blockwise.matmul import linear, product

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(matmul, "ONEDNN", True)


def tensors(B=3, T=40, C=24, M=56):
    torch.manual_seed(0)
    return torch.randn(B, T, C, requires_grad=True), torch.randn(M, C, requires_grad=True), torch.randn(M)


def count(monkeypatch):
    calls = []
    monkeypatch.setattr(matmul, "product", lambda x, w: calls.append(x.shape) or product(x, w))
    return calls


@pytest.mark.parametrize("shape", [(24, 56), (56, 24)])
def test_value_and_two_derivatives(onednn, monkeypatch, shape):
    calls = count(monkeypatch)
    x, weight, bias = tensors(C=shape[0], M=shape[1])
    results = []
    for function in (linear, F.linear):
        y = function(x, weight, bias)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, weight))
        results.append((y, *first, *second))
    assert len(calls) > 3
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=2e-6)


def test_float32_stays_float32(onednn):
    """bfloat16 would be off by 1e-3."""
    x, weight, _ = tensors(C=512, M=128)
    exact = x.double() @ weight.double().T
    assert (linear(x, weight) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_small_other_and_low_precision_products_are_torchs(onednn, monkeypatch):
    calls = count(monkeypatch)
    x, weight, bias = tensors()
    for part in (x[:1, :4], x.double()):
        assert torch.equal(linear(part, weight.to(part.dtype)), F.linear(part, weight.to(part.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert not calls
    linear(x, weight, bias)
    assert len(calls) == 1


def test_per_sample_gradients(onednn, monkeypatch):
    calls = count(monkeypatch)
    x, weight, _ = (z.detach() for z in tensors(B=2, T=80))
    results = []
    for function in (linear, F.linear):
        of_one = torch.func.grad(lambda w, z, function=function: function(z, w).pow(2).mean())
        results.append(torch.func.vmap(of_one, in_dims=(None, 0))(weight, x))
    torch.testing.assert_close(*results)
    assert calls


def test_compiled_once_for_all_batch_sizes(onednn):
    graphs = []
    compiled = torch.compile(linear, backend=lambda graph, _: graphs.append(graph) or graph.forward, dynamic=True)
    _, weight, _ = tensors()
    for rows in (70, 80, 90):
        assert compiled(torch.randn(rows, 24), weight).shape == (rows, 56)
    assert len(graphs) == 1


def test_nothing_to_multiply(onednn):
    assert linear(torch.zeros(70, 0), torch.zeros(5, 0)).abs().sum() == 0
    assert linear(torch.zeros(0, 24), torch.zeros(5, 24)).shape == (0, 5)


def test_training_is_the_same_without(small, tmp_path, monkeypatch):
    runs = {}
    for on in (True, False):
        monkeypatch.setattr(matmul, "ONEDNN", on)
        words = (*small, "--batch_size=8", f"--out_dir={tmp_path / str(on)}")
        run(*words)
        runs[on] = [loss for pair in losses(words).values() for loss in pair if loss is not None]
    assert runs[True] == pytest.approx(runs[False], rel=1e-5)
