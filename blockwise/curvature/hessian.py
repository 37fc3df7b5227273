"""Products with the Hessian of the loss, plain and preconditioned, and the gradient on a fixed batch.

The probes work on the raw model in its parameters' own precision, in eval mode and with math attention, since the
fused kernels cannot be differentiated twice. Nothing that trains is touched: no .grad, no mode, no generator but the
keys given here. A batch may be cut into any micro-batches and spread over any processes.

Shapes: N windows, T tokens a window, B positions of a batch in all, over every process.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockwise.loader import probe_batch


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

    @classmethod
    def sample(cls, split, seed, number, size, block_size, world):
        """This process's share of batch `number` of a loader.Split: `size` windows of `block_size` tokens in all."""
        windows = list(range(world.rank, size, world.size))
        x, y = probe_batch(split, seed, number, windows, block_size)  # (N, T) each
        return cls(x.to(world.device), y.to(world.device), windows, size * block_size, number)

    def cut(self, size):
        """Micro-batches of `size` windows (None: all at once)."""
        size = size or len(self.x) or 1  # a process may have none
        for at in range(0, len(self.x), size):
            end = at + size
            yield Batch(self.x[at:end], self.y[at:end], self.windows[at:end], self.positions, self.number)


@contextmanager
def double_backward_mode(model):
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


def no_reduce(tensors):
    """The sum over processes, where there is one."""
    return tensors


def gradient(model, batch, params, micro=None, all_reduce=no_reduce, targets=None):
    """Gradient of the mean loss over the whole batch: a list of tensors like `params`.

    micro: windows per micro-batch. all_reduce: sums a list of tensors over the processes. targets: a function of a
    micro-batch that gives other labels than the data's, (N, T).
    """
    sums = [torch.zeros_like(p) for p in params]
    with double_backward_mode(model):
        for part in batch.cut(micro):
            y = part.y if targets is None else targets(part)
            loss = model(part.x, y) * (y.numel() / batch.positions)
            for into, grad in zip(sums, torch.autograd.grad(loss, params), strict=True):
                into += grad
    return all_reduce(sums)


class HessianVectorProduct:
    """Products with the Hessian of the mean loss over a batch, with respect to `params` alone: its diagonal block.

    Where the batch is one micro-batch, the gradient's graph is built once and kept, and a product costs one backward
    pass through it; else every product builds the graphs anew, one after the other.
    """

    def __init__(self, model, batch, params, micro=None, all_reduce=no_reduce):
        self.model, self.batch, self.params, self.micro = model, batch, list(params), micro
        self.all_reduce = all_reduce
        self.size = sum(p.numel() for p in self.params)
        self.kept = None
        parts = list(batch.cut(micro))
        if len(parts) == 1:
            self.kept = self._gradient(parts[0])

    def _gradient(self, part):
        with double_backward_mode(self.model):
            loss = self.model(part.x, part.y) * (part.y.numel() / self.batch.positions)
            return torch.autograd.grad(loss, self.params, create_graph=True)

    def hvp(self, vectors):
        """H times `vectors`, a list of tensors like `params`; returns such a list."""
        sums = [torch.zeros_like(p) for p in self.params]
        parts = [None] if self.kept else self.batch.cut(self.micro)
        for part in parts:
            grads = self.kept or self._gradient(part)
            with double_backward_mode(self.model):
                products = torch.autograd.grad(
                    grads, self.params, vectors, retain_graph=self.kept is not None, materialize_grads=True
                )
            for into, product in zip(sums, products, strict=True):
                into += product
        return self.all_reduce(sums)

    def __call__(self, v):
        """The same on flat vectors, (n,) -> (n,): a matvec for `eigenvalues`."""
        pieces = v.split([p.numel() for p in self.params])
        vectors = [piece.view_as(p) for piece, p in zip(pieces, self.params, strict=True)]
        return torch.cat([product.flatten() for product in self.hvp(vectors)])


class Preconditioned:
    """Products with D H D, D = R^(1/2) P^(-1/2) diagonal: a matvec for `eigenvalues`.

    hessian: HessianVectorProduct; scales: D's entries, tensors like its params. Coordinates where D is 0 are left out.
    """

    def __init__(self, hessian, scales):
        self.hessian = hessian
        self.scale = torch.cat([scale.flatten() for scale in scales])  # (n,)

    def __call__(self, v):
        return self.scale * self.hessian(self.scale * v)

    def random(self, seed):
        """A vector (n,) to start from, which belongs to the seed."""
        return torch.randn(len(self.scale), generator=keyed(seed)).to(self.scale) * (self.scale > 0)

    def to_preconditioned(self, x):
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


def keyed(*key):
    """A generator on the CPU that belongs to this key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
