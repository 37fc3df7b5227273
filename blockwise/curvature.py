"""Curvature of the loss by block type: diagonals of the Fisher and the Hessian, and products with the Hessian.

The probes work on the raw model in its parameters' own precision, in eval mode and with math attention, since the
fused kernels cannot be differentiated twice. Nothing that trains is touched: no .grad, no mode, no generator but the
keys given here. A batch may be cut into any micro-batches and spread over any processes.

Shapes: N windows, T tokens a window, B positions of a batch in all, over every process.
"""

import math
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

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
        size = size or len(self.x) or 1  # a process may have none
        for at in range(0, len(self.x), size):
            end = at + size
            yield Batch(self.x[at:end], self.y[at:end], self.windows[at:end], self.positions, self.number)


@contextmanager
def probing(model):
    """Where a model's loss can be differentiated twice, as it is without dropout, in full float32."""
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")  # products with TF32 lose what two processes agree on
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        model.train(training)
        torch.set_float32_matmul_precision(precision)


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


def fisher_sharpness(model, blocks, batch, seed, draws, micro=None, total=alone):
    """{block type: average Fisher sharpness on `batch`}: the mean over `draws`, the numbers of draws of labels.

    blocks: {block type: its parameters}. The diagonal's trace alone, so that no more than a gradient is held.
    """
    params = [p for members in blocks.values() for p in members]
    traces = dict.fromkeys(blocks, 0.0)
    for draw in draws:
        labels = partial(sampled_labels, model, seed=seed, draw=draw)
        squares = (g.norm().item() ** 2 for g in gradient(model, batch, params, micro, total, labels))
        for block, members in blocks.items():
            traces[block] += batch.positions * sum(next(squares) for _ in members)
    return {b: traces[b] / len(draws) / sum(p.numel() for p in members) for b, members in blocks.items()}


# The largest eigenvalue that an optimizer meets


class Preconditioned:
    """Products with D H D, D = R^(1/2) P^(-1/2) diagonal: a matvec for blockwise.spectrum.

    products: HessianProducts; scales: D's entries, tensors like its params. Coordinates where D is 0 are left out.
    """

    def __init__(self, products, scales):
        self.products = products
        self.scale = torch.cat([scale.flatten() for scale in scales])  # (n,)

    def __call__(self, v):
        return self.scale * self.products(self.scale * v)

    def random(self, seed):
        """A vector (n,) to start from, which belongs to the seed."""
        return torch.randn(len(self.scale), generator=keyed(seed)).to(self.scale) * (self.scale > 0)

    def entered(self, x):
        """The v for which D v = x, up to what D leaves out: both (n,)."""
        return torch.where(self.scale > 0, x / self.scale, 0.0)


def scaling(groups, preconditioner, exclude=()):
    """{parameter: its entries of R^(1/2) P^(-1/2)} for the parameters that take part.

    R is a block's learning rate over that of Norm, whose rate the eigenvalue thus belongs to. groups: an optimizer's,
    with `block` and `lr`; preconditioner: {parameter: diagonal of P}; exclude: block types that are left out.
    No parameter takes part where the rate of Norm is 0.
    """
    base = norm_rate(groups)
    return {
        p: (group["lr"] / base / preconditioner[p]).sqrt()
        for group in groups
        if base > 0 and group["block"] not in exclude
        for p in group["params"]
        if p in preconditioner
    }


def norm_rate(groups):
    return next(group["lr"] for group in groups if group["block"] == "Norm")


class Live:
    """Measures a model while it trains, on one fixed batch; what its methods return are parts of a log's row.

    Of the largest eigenvalue of R^(1/2) P^(-1/2) H P^(-1/2) R^(1/2) it makes few products a time and carries the
    eigenvector v on, as the direction x = R^(1/2) P^(-1/2) v of the parameters: P^(1/2) R^(-1/2) x under the next P
    and R is the transport of arXiv 2606.16768, and needs no old P.

    vector: {name of a parameter: its part of x}, None before the first time: what an exact resume needs.
    solve: (matvec, start) -> spectrum.Eigenvalue; threshold: of the optimizer; exclude: block types; seed: of labels
    and of the first start; micro, total: as everywhere here.
    """

    def __init__(self, model, batch, solve, threshold, exclude=(), seed=0, micro=None, total=alone):
        self.model, self.batch, self.solve, self.threshold = model, batch, solve, threshold
        self.exclude, self.seed, self.micro, self.total = exclude, seed, micro, total
        self.names = {p: name for name, p in model.named_parameters()}
        self.vector = None

    def sharpness(self, draw, groups, batch=None):
        """sharpness/BLOCK of every block, on labels of this number. batch: another than its own."""
        blocks = {}
        for group in groups:
            blocks.setdefault(group["block"], []).extend(group["params"])
        batch = batch or self.batch
        found = fisher_sharpness(self.model, blocks, batch, self.seed, [draw], self.micro, self.total)
        return {f"sharpness/{block}": value for block, value in found.items()}

    def curvature(self, groups, preconditioner):
        """curvature/lambda_max and what belongs to it; nothing where no coordinate takes part, as before any state.

        A product that is not finite makes the eigenvalue NaN, and the next start a new one.
        """
        started = time.perf_counter()
        scales = scaling(groups, preconditioner, self.exclude)
        if not any(scale.any() for scale in scales.values()):
            return {}
        products = HessianProducts(self.model, self.batch, scales, self.micro, self.total)
        matrix = Preconditioned(products, scales.values())
        start = matrix.entered(self.carried(products.params))
        try:
            found = self.solve(matrix, start if start.any() else matrix.random(self.seed))
            value, residual = found.value, found.residual
        except FloatingPointError:
            value = residual = math.nan
        self.vector = None
        if math.isfinite(value):
            pieces = (matrix.scale * found.vector).split([p.numel() for p in products.params])
            pairs = zip(products.params, pieces, strict=True)
            self.vector = {self.names[p]: piece.view_as(p).clone() for p, piece in pairs}
        return {
            "curvature/lambda_max": value,
            "curvature/lr_lambda": norm_rate(groups) * value,
            "curvature/threshold": self.threshold,
            "curvature/residual": residual,
            "curvature/ms": 1000 * (time.perf_counter() - started),
        }

    def carried(self, params):
        """The vector over these parameters, (n,); 0 for those that it has no part of."""
        vector = self.vector or {}
        parts = [vector.get(self.names[p]) for p in params]
        parts = [torch.zeros_like(p) if x is None else x.to(p) for p, x in zip(params, parts, strict=True)]
        return torch.cat([part.flatten() for part in parts])


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

    model: gives names and order of the parameters that need a gradient, tied ones once, a tied output layer with the
    embedding (use `untied` for its two uses apart).
    """

    def __init__(self, model):
        block_of = {name: block for block, members in blocks_of(model).items() for name, _ in members}
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.block_of = [block_of[name] for name in self.names]
        self.sizes = [p.numel() for _, p in named]
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
