"""Curvature of the loss by block type: diagonals of the Fisher and the Hessian, and products with the Hessian.

The probes work on the raw model in its parameters' own precision, in eval mode and with math attention, since the
fused kernels cannot be differentiated twice. Nothing that trains is touched: no .grad, no mode, no generator but the
keys given here. A batch may be cut into any micro-batches and spread over any processes.

Shapes: N windows, T tokens a window, B positions of a batch in all, over every process.
"""

import math
import re
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockwise.blocks import blocks_of


@dataclass
class Batch:
    """A fixed batch, of which this process holds some windows.

    x, y: (N, T) token ids, here; windows: their numbers among those of all processes, (N,); positions: B, of all
    processes; number: of the batch, for the labels' keys.
    """

    x: torch.Tensor
    y: torch.Tensor
    windows: list
    positions: int
    number: int = 0

    def cut(self, size):
        """Micro-batches of `size` windows (None: all at once)."""
        size = size or len(self.x)
        for at in range(0, len(self.x), size):
            end = at + size
            yield Batch(self.x[at:end], self.y[at:end], self.windows[at:end], self.positions, self.number)


@contextmanager
def probing(model):
    """Where a model's loss can be differentiated twice, as it is without dropout."""
    training = model.training
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        model.train(training)


def alone(tensors):
    """The sum over processes, where there is one."""
    return tensors


def gradient(model, batch, params, micro=None, total=alone, targets=None):
    """Gradient of the mean loss over the whole batch: a list of tensors like `params`.

    micro: windows per micro-batch. total: sums a list of tensors over the processes. targets: a function of a
    micro-batch that gives other labels than the data's, (N, T).
    """
    sums = [torch.zeros_like(p) for p in params]
    with probing(model):
        for part in batch.cut(micro):
            y = part.y if targets is None else targets(part)
            loss = model(part.x, y) * (y.numel() / batch.positions)
            for into, grad in zip(sums, torch.autograd.grad(loss, params), strict=True):
                into += grad
    return total(sums)


class HessianProducts:
    """Products with the Hessian of the mean loss over a batch, with respect to `params` alone: its diagonal block.

    Where the batch is one micro-batch, the gradient's graph is built once and kept, and a product costs one backward
    pass through it; else every product builds the graphs anew, one after the other.
    """

    def __init__(self, model, batch, params, micro=None, total=alone):
        self.model, self.batch, self.params, self.micro, self.total = model, batch, list(params), micro, total
        self.size = sum(p.numel() for p in self.params)
        self.kept = None
        parts = list(batch.cut(micro))
        if len(parts) == 1:
            self.kept = self._gradient(parts[0])

    def _gradient(self, part):
        with probing(self.model):
            loss = self.model(part.x, part.y) * (part.y.numel() / self.batch.positions)
            return torch.autograd.grad(loss, self.params, create_graph=True)

    def of(self, vectors):
        """H times `vectors`, a list of tensors like `params`; returns such a list."""
        sums = [torch.zeros_like(p) for p in self.params]
        parts = [None] if self.kept else self.batch.cut(self.micro)
        for part in parts:
            grads = self.kept or self._gradient(part)
            with probing(self.model):
                products = torch.autograd.grad(
                    grads, self.params, vectors, retain_graph=self.kept is not None, materialize_grads=True
                )
            for into, product in zip(sums, products, strict=True):
                into += product
        return self.total(sums)

    def __call__(self, v):
        """The same on flat vectors, (n,) -> (n,): a matvec for blockwise.spectrum."""
        pieces = v.split([p.numel() for p in self.params])
        vectors = [piece.view_as(p) for piece, p in zip(pieces, self.params, strict=True)]
        return torch.cat([product.flatten() for product in self.of(vectors)])


# Diagonals. Each function gives one unbiased sample per batch and draw: a list of tensors like `params`.


def fisher_diagonal(model, batch, params, seed, draw, micro=None, total=alone):
    """Gauss-Newton-Bartlett sample of the Fisher's diagonal: B times the squared gradient on sampled labels.

    Sophia's estimator (arXiv 2305.14342, section 2.3) with the paper's B (arXiv 2502.19002): labels are drawn from
    the model, and the gradient of the mean loss over all B positions is squared once.
    """
    generated = gradient(model, batch, params, micro, total, lambda part: sampled_labels(model, part, seed, draw))
    return [batch.positions * g.square() for g in generated]


def data_diagonal(model, batch, params, micro=None, total=alone):
    """The same formula on the data's own labels. Not the Fisher: it holds B times the squared true gradient besides."""
    return [batch.positions * g.square() for g in gradient(model, batch, params, micro, total)]


def empirical_fisher_diagonal(model, batch, params, total=alone):
    """T times the mean over windows of the squared gradient of a window's mean loss on the data's labels.

    Per position, as the Fisher is, under the reading that the gradients of a window's positions are uncorrelated.
    """
    sums = [torch.zeros_like(p) for p in params]
    with probing(model):
        for part in batch.cut(1):
            for into, grad in zip(sums, torch.autograd.grad(model(part.x, part.y), params), strict=True):
                into += grad.square() * (part.y.numel() ** 2 / batch.positions)
    return total(sums)


def hessian_diagonal(products, seed, number, draw):
    """Hutchinson's sample of the Hessian's diagonal, v * H v for random signs v. products: HessianProducts."""
    generator = keyed(seed, number, draw)
    signs = [torch.randint(0, 2, p.shape, generator=generator) * 2 - 1 for p in products.params]
    signs = [s.to(p) for s, p in zip(signs, products.params, strict=True)]
    return [s * h for s, h in zip(signs, products.of(signs), strict=True)]


def sampled_labels(model, batch, seed, draw):
    """Labels drawn from the model's own predictions, (N, T): each window's from a generator of its own.

    By inverting the distribution in float64, so that rounding does not change them.
    """
    with probing(model), torch.no_grad():
        chances = model(batch.x).double().softmax(-1).cumsum(-1)  # (N, T, V)
    shape = batch.x.shape[1:]
    u = [torch.rand(shape, generator=keyed(seed, batch.number, draw, w), dtype=torch.float64) for w in batch.windows]
    u = torch.stack(u).to(chances).unsqueeze(-1) * chances[..., -1:]  # (N, T, 1)
    return torch.searchsorted(chances, u, right=True).squeeze(-1).clamp_(max=chances.size(-1) - 1)


def keyed(*key):
    """A generator on the CPU that belongs to this key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


# What samples of a diagonal say about blocks


@dataclass
class Sharpness:
    """Average sharpness of one block: tr of its diagonal curvature over its number of parameters.

    error: standard error of the mean, None for a single sample. geometric: geometric mean of the diagonal's entries
    that are above zero; positive: their share. histogram: share of all entries in each of the bins of log10 entry.
    """

    mean: float
    error: float | None
    geometric: float | None
    positive: float
    parameters: int
    histogram: list


LOG10_BINS = np.linspace(-20, 5, 101)


class Diagonal:
    """Collects samples of a model's diagonal curvature, and averages them by block type and by layer.

    model: gives names and order of the parameters, tied ones once, a tied output layer with the embedding (use
    `untied` for its two uses apart).
    """

    def __init__(self, model):
        block_of = {name: block for block, members in blocks_of(model).items() for name, _ in members}
        self.names = [name for name, _ in model.named_parameters()]
        self.block_of = [block_of[name] for name in self.names]
        self.sizes = [p.numel() for p in model.parameters()]
        self.sums, self.traces = None, []  # of the diagonal; {group: trace} of each batch's samples

    def add(self, samples):
        """The samples of one batch: a list of diagonals. Batches are independent, draws within one are not."""
        for sample in samples:
            if self.sums is None:
                self.sums, self.count = [torch.zeros_like(d, dtype=torch.float64) for d in sample], 0
            for into, d in zip(self.sums, sample, strict=True):
                into += d
            self.count += 1
        self.traces.append([[d.double().sum().item() for d in sample] for sample in samples])

    def by_block(self):
        """{block type: Sharpness}"""
        return {block: self._of([i for i, b in enumerate(self.block_of) if b == block]) for block in self.blocks}

    def by_layer(self):
        """{(layer or None, block type): Sharpness}"""
        keys = [(layer_of(name), block) for name, block in zip(self.names, self.block_of, strict=True)]
        return {key: self._of([i for i, k in enumerate(keys) if k == key]) for key in dict.fromkeys(keys)}

    @property
    def blocks(self):
        return list(dict.fromkeys(self.block_of))

    def _of(self, members):
        size = sum(self.sizes[i] for i in members)
        batches = [[sum(tensors[i] for i in members) / size for tensors in samples] for samples in self.traces]
        # Over batches where there are several: their means hold the spread of the draws too
        independent = [float(np.mean(draws)) for draws in batches] if len(batches) > 1 else batches[0]
        error = np.std(independent, ddof=1) / math.sqrt(len(independent)) if len(independent) > 1 else None
        entries = torch.cat([self.sums[i].flatten() for i in members]).cpu().numpy() / self.count
        logs = np.log10(entries[entries > 0])
        histogram, _ = np.histogram(np.clip(logs, LOG10_BINS[0], LOG10_BINS[-1]), LOG10_BINS)
        return Sharpness(
            mean=float(np.mean(independent)),
            error=None if error is None else float(error),
            geometric=float(10 ** logs.mean()) if len(logs) else None,
            positive=len(logs) / size,
            parameters=size,
            histogram=(histogram / size).tolist(),
        )


def layer_of(name):
    """'blocks.3.attn.q_proj.weight' -> 3; None outside of the layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def untied(model, copy):
    """A copy of a model whose output layer has its own matrix, with the same numbers: input and output use apart.

    copy: copies a model, e.g. copy.deepcopy.
    """
    twin = copy(model)
    if twin.lm_head.weight is twin.tok_emb.weight:
        twin.lm_head.weight = torch.nn.Parameter(twin.tok_emb.weight.detach().clone())
    return twin
