"""Diagonals and products against the explicit Hessian and Fisher of small models, in float64."""

import copy
import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from explicit import MODELS, N, T, V, explicit_fisher, explicit_hessian_of, flat, make, make_batch, slices
from torch._subclasses.fake_tensor import FakeTensorMode

from blockwise.blocks import layer_of
from blockwise.curvature.diagonals import (
    Diagonal,
    data_diagonal,
    empirical_fisher_diagonal,
    fisher_diagonal,
    hessian_diagonal,
    sampled_labels,
)
from blockwise.curvature.hessian import Batch, HessianVectorProduct, double_backward_mode, gradient, wide


@functools.cache
def explicit_hessian(model_type, tied):
    """Of the model and the batch that these tests share, by autograd's double backward, in one piece."""
    return explicit_hessian_of(make(model_type, tied), make_batch())


@pytest.mark.parametrize("model_type,tied", MODELS)
def test_products_are_the_explicit_hessians(model_type, tied):
    """The whole matrix, and the diagonal block of every parameter tensor."""
    model, batch = make(model_type, tied), make_batch()
    H = explicit_hessian(model_type, tied)
    assert (H - H.T).abs().max() < 1e-12
    products = HessianVectorProduct(model, batch, model.parameters())
    for _ in range(5):
        v = torch.randn(len(H), dtype=torch.float64)
        assert torch.allclose(products(v), H @ v, atol=1e-10)
    for (name, p), where in zip(model.named_parameters(), slices(model).values(), strict=True):
        part = HessianVectorProduct(model, batch, [p])
        v = torch.randn(p.numel(), dtype=torch.float64)
        assert torch.allclose(part(v), H[where, where] @ v, atol=1e-11), name


def average(truth, model, diagonal, block, layer="all"):
    """Of the entries of one block type, in one layer or in all."""
    names = [name for name, b in zip(slices(model), diagonal.block_of, strict=True) if b == block]
    return torch.cat([truth[slices(model)[n]] for n in names if layer in ("all", layer_of(n))]).mean().item()


@pytest.mark.parametrize("model_type,tied,kind", [("llama", False, "fisher"), ("gpt2", True, "hessian")])
def test_estimates_and_their_errors(model_type, tied, kind):
    """500 draws are within four standard errors of every block's trace; ten of them within two in about 93 %."""
    model, batch = make(model_type, tied), make_batch()
    params = list(model.parameters())
    if kind == "fisher":
        truth = explicit_fisher(model, batch)
        samples = [fisher_diagonal(model, batch, params, 0, draw) for draw in range(500)]
    else:
        truth, products = explicit_hessian(model_type, tied).diagonal(), HessianVectorProduct(model, batch, params)
        samples = [hessian_diagonal(products, 0, draw) for draw in range(500)]
    diagonal = Diagonal(model)
    diagonal.add(samples)
    by_block = diagonal.by_block()
    assert set(by_block) == {"Emb", "QK", "VO", "FFN", "Norm"} | (set() if tied else {"Head"})
    everything = {("all", block): stats for block, stats in by_block.items()} | diagonal.by_layer()
    for (layer, block), stats in everything.items():
        expected = average(truth, model, diagonal, block, layer)
        assert abs(stats["mean"] - expected) < 4 * stats["error"], (layer, block)
        assert stats["error"] < 0.6 * max(abs(expected), truth.abs().mean().item()), (layer, block)
    hits = []
    for start in range(0, 500, 10):
        few = Diagonal(model)
        few.add(samples[start : start + 10])
        for block, stats in few.by_block().items():
            hits.append(abs(stats["mean"] - average(truth, model, diagonal, block)) < 2 * stats["error"])
    assert 0.84 < np.mean(hits) < 0.99


@pytest.mark.parametrize("micro", [1, 3, None])
def test_the_cut_into_micro_batches_does_not_matter(micro):
    model, batch = make("gpt2", True), make_batch()
    params = list(model.parameters())
    whole = HessianVectorProduct(model, batch, params)
    pieces = replace(batch, micro=micro)
    cut = HessianVectorProduct(model, pieces, params)
    for a, b in (
        (fisher_diagonal(model, batch, params, 0, 0), fisher_diagonal(model, pieces, params, 0, 0)),
        (data_diagonal(model, batch, params), data_diagonal(model, pieces, params)),
        (hessian_diagonal(whole, 0, 0), hessian_diagonal(cut, 0, 0)),
    ):
        assert torch.allclose(flat(a), flat(b), rtol=1e-9, atol=1e-14)


def test_processes_share_a_batch():
    """Two halves, summed, are the whole: each process sees its own sequences, and labels belong to sequences."""
    model, batch = make("llama", True), make_batch()
    params = list(model.parameters())
    halves = [
        Batch(batch.x[i::2], batch.y[i::2], batch.sequences[i::2], batch.positions, batch.number) for i in range(2)
    ]
    labels = [sampled_labels(model, half, 0, 0) for half in halves]
    assert torch.equal(torch.stack(labels, 1).flatten(0, 1), sampled_labels(model, batch, 0, 0))
    whole = gradient(model, batch, params)
    first, second = (gradient(model, half, params) for half in halves)
    added = [a + b for a, b in zip(first, second, strict=True)]
    assert torch.allclose(flat(added), flat(whole), rtol=1e-10)

    def total(mine):
        return [m + other for m, other in zip(mine, second, strict=True)]

    squared = data_diagonal(model, replace(halves[0], all_reduce=total), params)
    assert torch.allclose(flat(squared), flat(data_diagonal(model, batch, params)), rtol=1e-9)


def test_labels_follow_the_model_and_their_key():
    model, batch = make("llama", False), make_batch(sequences=1)
    with double_backward_mode(model), torch.no_grad():
        chances = model(batch.x)[0, -1].softmax(-1)
    draws = torch.stack([sampled_labels(model, batch, 0, draw)[0, -1] for draw in range(1000)])
    counts = torch.bincount(draws, minlength=V) / 1000
    assert (counts - chances).abs().max() < 4 * 0.5 / math.sqrt(1000)
    assert torch.equal(draws[:9], torch.stack([sampled_labels(model, batch, 0, draw)[0, -1] for draw in range(9)]))
    batch.number = 9
    assert not torch.equal(draws[:9], torch.stack([sampled_labels(model, batch, 0, draw)[0, -1] for draw in range(9)]))


def test_empirical_fisher_by_hand():
    model, batch = make("gpt2", False), make_batch()
    params = list(model.parameters())
    singles = []
    for i in range(N):
        one = Batch(batch.x[i : i + 1], batch.y[i : i + 1], [i], T)
        singles.append(flat(gradient(model, one, params)).square())
    expected = T * torch.stack(singles).mean(0)
    assert torch.allclose(flat(empirical_fisher_diagonal(model, batch, params)), expected, rtol=1e-10)


def test_nothing_that_trains_is_touched():
    model, batch = make("gpt2", True), make_batch()
    params = list(model.parameters())
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fisher_diagonal(model, batch, params, 0, 0)
    hessian_diagonal(HessianVectorProduct(model, batch, params), 0, 0)
    empirical_fisher_diagonal(model, batch, params)
    assert model.training and all(p.grad is None for p in params)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_means_and_errors_by_hand():
    """Two batches of two draws: the error is that of the batches' means."""
    model = make("llama", False)
    diagonal = Diagonal(model)
    for values in ((1.0, 3.0), (5.0, 7.0)):
        diagonal.add([[torch.full_like(p, value) for p in model.parameters()] for value in values])
    for one in (*diagonal.by_block().values(), *diagonal.by_layer().values()):
        assert (one["mean"], one["error"]) == (4.0, pytest.approx(2.0))
        assert one["geometric"] == pytest.approx(4.0) and one["positive"] == 1
        assert sum(one["histogram"]) == pytest.approx(1)
    assert {layer for layer, _ in diagonal.by_layer()} == {None, 0, 1}
    assert sum(one["parameters"] for one in diagonal.by_layer().values()) == sum(p.numel() for p in model.parameters())


def test_what_is_summed_in_float64_where_the_device_has_none():
    with FakeTensorMode():
        x = wide(torch.zeros(2, device="mps"))
    assert (x.dtype, x.device.type) == (torch.float64, "cpu")
