"""Estimates of the diagonal of the Fisher and of the Hessian, and the average sharpness of each block.

A `*_diagonal` function returns one sample for a batch and a draw: a list of tensors like `params`. Precision and shapes
are those of `hessian.py`.
"""

import math
from functools import partial

import numpy as np
import torch

from blockwise.blocks import blocks_of, layer_of
from blockwise.curvature.hessian import double_backward_mode, gradient, keyed, wide


def fisher_diagonal(model, batch, params, seed, draw):
    """Gauss-Newton-Bartlett estimate of the Fisher diagonal: B times the squared gradient on sampled labels.

    Sophia's estimator (arXiv 2305.14342, section 2.3) with the paper's B (arXiv 2502.19002): labels are sampled from
    the model's predictions, and the gradient of the mean loss over all B positions is squared once. Unbiased.
    """
    generated = gradient(model, batch, params, lambda part: sampled_labels(model, part, seed, draw))
    return [batch.positions * g.square() for g in generated]


def data_diagonal(model, batch, params):
    """B times the squared gradient on the data's labels. Not the Fisher: it adds B times the squared true gradient."""
    return [batch.positions * g.square() for g in gradient(model, batch, params)]


def empirical_fisher_diagonal(model, batch, params):
    """Empirical Fisher diagonal: T times the mean over sequences of the squared gradient of a sequence's mean loss.

    On the data's labels. The factor T makes it comparable with the Fisher per position, as if the gradients of a
    sequence's positions were uncorrelated.
    """
    sums = [torch.zeros_like(p) for p in params]
    with double_backward_mode(model):
        for part in batch.cut(1):
            for into, grad in zip(sums, torch.autograd.grad(model(part.x, part.y), params), strict=True):
                into += grad.square() * (part.y.numel() ** 2 / batch.positions)
    return batch.all_reduce(sums)


def hessian_diagonal(hessian, seed, draw):
    """Hutchinson's estimate of the diagonal of a HessianVectorProduct, v * H v for Rademacher v. Unbiased."""
    generator = keyed(seed, hessian.batch.number, draw)
    signs = [torch.randint(0, 2, p.shape, generator=generator) * 2 - 1 for p in hessian.params]
    signs = [s.to(p) for s, p in zip(signs, hessian.params, strict=True)]
    return [s * h for s, h in zip(signs, hessian.hvp(signs), strict=True)]


def sampled_labels(model, batch, seed, draw):
    """Labels sampled from the model's predictions, (N, T), with a generator for each sequence.

    By inverting the cumulative distribution in float64, so that rounding hardly ever changes a label.
    """
    with double_backward_mode(model, batch.precision), torch.no_grad():
        chances = wide(model(batch.x)).softmax(-1).cumsum(-1)  # (N, T, V)
    shape = batch.x.shape[1:]
    u = [torch.rand(shape, generator=keyed(seed, batch.number, draw, i), dtype=torch.float64) for i in batch.sequences]
    u = torch.stack(u).to(chances).unsqueeze(-1) * chances[..., -1:]  # (N, T, 1)
    labels = torch.searchsorted(chances, u, right=True).squeeze(-1).clamp_(max=chances.size(-1) - 1)
    return labels.to(batch.x.device)


def fisher_sharpness(model, blocks, batch, seed, draw):
    """{block type: average Fisher sharpness on `batch`}: the mean of `fisher_diagonal` over the block.

    blocks: {block type: its parameters}. It sums traces and never holds a diagonal.
    """
    params = [p for members in blocks.values() for p in members]
    labels = partial(sampled_labels, model, seed=seed, draw=draw)
    squares = (g.norm().item() ** 2 for g in gradient(model, batch, params, labels))
    traces = {block: batch.positions * sum(next(squares) for _ in members) for block, members in blocks.items()}
    return {block: traces[block] / sum(p.numel() for p in members) for block, members in blocks.items()}


LOG10_BINS = np.linspace(-20, 5, 101)  # edges of the bins of log10 of an entry


class Diagonal:
    """Collects samples of a model's diagonal, and averages them by block type and by layer.

    model: its trained parameters give names and order. Tied parameters count once, a tied output layer as Emb.
    """

    def __init__(self, model):
        block_of = {name: block for block, members in blocks_of(model).items() for name, _ in members}
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.sizes = list(trained), [p.numel() for p in trained.values()]
        self.block_of = [block_of[name] for name in self.names]
        self.sums, self.count = [torch.zeros_like(wide(p.detach())) for p in trained.values()], 0  # of all samples
        self.traces = []  # of every batch: for each sample the traces of the tensors

    def add(self, samples):
        """Add the samples of one batch, a list of diagonals. Batches are independent, draws on one batch are not."""
        for sample in samples:
            for into, d in zip(self.sums, sample, strict=True):
                into += d.to(into.device)
            self.count += 1
        self.traces.append([[wide(d).sum().item() for d in sample] for sample in samples])

    def by_block(self):
        """{block type: its statistics}"""
        return self._by(self.block_of)

    def by_layer(self):
        """{(layer or None, block type): statistics}"""
        return self._by([(layer_of(name), block) for name, block in zip(self.names, self.block_of, strict=True)])

    def _by(self, keys):
        return {key: self._of([i for i, k in enumerate(keys) if k == key]) for key in dict.fromkeys(keys)}

    def _of(self, members):
        """Average sharpness, the trace of a diagonal block over its number of parameters: `mean`; and more of it.

        error: standard error of the mean, None for a single sample. geometric: geometric mean of the positive entries
        of the diagonal; positive: their share. histogram: share of all entries in each bin of LOG10_BINS.
        """
        size = sum(self.sizes[i] for i in members)
        batches = [[sum(tensors[i] for i in members) / size for tensors in samples] for samples in self.traces]
        # With several batches the error is that of their means, which vary with data and draws alike
        independent = [float(np.mean(draws)) for draws in batches] if len(batches) > 1 else batches[0]
        error = float(np.std(independent, ddof=1)) / math.sqrt(len(independent)) if len(independent) > 1 else None
        entries = torch.cat([self.sums[i].flatten() for i in members]).cpu().numpy() / self.count
        logs = np.log10(entries[entries > 0])
        histogram, _ = np.histogram(np.clip(logs, LOG10_BINS[0], LOG10_BINS[-1]), LOG10_BINS)
        return {
            "mean": float(np.mean(independent)), "error": error,
            "geometric": float(10 ** logs.mean()) if len(logs) else None, "positive": len(logs) / size,
            "parameters": size, "histogram": (histogram / size).tolist(),
        }  # fmt: skip
