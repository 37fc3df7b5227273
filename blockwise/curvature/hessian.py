"""Gradient and Hessian-vector products of the loss on a fixed batch, plain and preconditioned.

Everything here works on the raw model, in its parameters' own precision, in eval mode and with math attention, since
fused attention kernels have no second derivative. Training is not affected: `.grad`, the mode and torch's generators
stay as they are. A batch may be cut into micro-batches of any size and split over any number of processes.

Shapes: N sequences on this process, T tokens in each, B positions (tokens) of the batch over all processes.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from blockwise.loader import probe_batch


@dataclass
class Batch:
    """A fixed batch, of which this process holds some sequences, and how it is computed.

    x, y: (N, T) token ids on this process; sequences: their N indices in the whole batch; positions: B; number: index
    of the batch, which seeds the labels that are sampled for it. micro: sequences per micro-batch (None: all).
    precision: of float32 products; "high": on CUDA TF32, with which one process and two agree to 1e-3 only.
    all_reduce: sums a list of tensors over the processes.
    """

    x: torch.Tensor
    y: torch.Tensor
    sequences: list
    positions: int
    number: int = 0
    micro: int | None = None
    precision: str = "highest"
    all_reduce: Callable = lambda tensors: tensors

    @classmethod
    def sample(cls, split, seed, number, size, block_size, world, micro=None, precision="highest"):
        """This process's share of a batch of `size` sequences of `block_size` tokens, on its device.

        split: loader.Split. The batch depends on seed and number alone, not on the number of processes.
        """
        sequences = list(range(world.rank, size, world.size))
        x, y = (z.to(world.device) for z in probe_batch(split, seed, number, sequences, block_size))  # (N, T) each
        return cls(x, y, sequences, size * block_size, number, micro, precision, world.all_reduce_sum)

    def cut(self, size):
        """Micro-batches of `size` sequences (None: one of all)."""
        size = size or len(self.x) or 1  # a process may have no sequence
        for at in range(0, len(self.x), size):
            part = slice(at, at + size)
            yield replace(self, x=self.x[part], y=self.y[part], sequences=self.sequences[part])


@contextmanager
def double_backward_mode(model, precision="highest"):
    """Context in which the loss can be differentiated twice: without dropout, autocast and fused attention."""
    training, before = model.training, torch.get_float32_matmul_precision()
    device = next(model.parameters()).device.type
    model.eval()
    torch.set_float32_matmul_precision(precision if device == "cuda" else "highest")
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, enabled=False):
            yield
    finally:
        model.train(training)
        torch.set_float32_matmul_precision(before)


def gradient(model, batch, params, targets=None):
    """Gradient of the mean loss over the whole batch: a list of tensors like `params`.

    targets: maps a micro-batch to labels (N, T) that take the place of the data's.
    """
    sums = [torch.zeros_like(p) for p in params]
    with double_backward_mode(model, batch.precision):
        for part in batch.cut(batch.micro):
            y = part.y if targets is None else targets(part)
            loss = model(part.x, y) * (y.numel() / batch.positions)
            for into, grad in zip(sums, torch.autograd.grad(loss, params), strict=True):
                into += grad
    return batch.all_reduce(sums)


class HessianVectorProduct:
    """Products with the Hessian of the mean loss over a batch with respect to `params`, by double backward.

    With some of a model's parameters it is their diagonal block of the Hessian; n is their number, `size`. If the
    batch is a single micro-batch, the graph of the gradient is built once and kept, and a product costs one backward
    pass through it. Otherwise every product builds the graph of each micro-batch again.
    """

    def __init__(self, model, batch, params):
        self.model, self.batch, self.params = model, batch, list(params)
        self.size = sum(p.numel() for p in self.params)
        self.kept = None
        parts = list(batch.cut(batch.micro))
        if len(parts) == 1:
            self.kept = self._gradient(parts[0])

    def _gradient(self, part):
        with double_backward_mode(self.model, self.batch.precision):
            loss = self.model(part.x, part.y) * (part.y.numel() / self.batch.positions)
            return torch.autograd.grad(loss, self.params, create_graph=True)

    def hvp(self, vectors):
        """H v, for v and the result as lists of tensors like `params`."""
        sums = [torch.zeros_like(p) for p in self.params]
        parts = [None] if self.kept else self.batch.cut(self.batch.micro)
        for part in parts:
            grads = self.kept or self._gradient(part)
            with double_backward_mode(self.model, self.batch.precision):
                products = torch.autograd.grad(
                    grads, self.params, vectors, retain_graph=self.kept is not None, materialize_grads=True
                )
            for into, product in zip(sums, products, strict=True):
                into += product
        return self.batch.all_reduce(sums)

    def __call__(self, v):
        """H v on flat vectors, (n,) -> (n,): the matvec that `eigenvalues` and `spectra` take."""
        pieces = v.split([p.numel() for p in self.params])
        vectors = [piece.view_as(p) for piece, p in zip(pieces, self.params, strict=True)]
        return torch.cat([product.flatten() for product in self.hvp(vectors)])


class Preconditioned(HessianVectorProduct):
    """The preconditioned Hessian D H D as a matvec (n,) -> (n,), with the diagonal D = R^(1/2) P^(-1/2) of `scaling`.

    scales: {parameter: its entries of D, a tensor like it}. A coordinate takes no part where D is 0.
    """

    def __init__(self, model, batch, scales):
        super().__init__(model, batch, scales)
        self.scale = torch.cat([scale.flatten() for scale in scales.values()])  # (n,)

    def __call__(self, v):
        return self.scale * super().__call__(self.scale * v)

    def random(self, seed):
        """A Gaussian start vector (n,), zero where D is; the same for a seed on every device."""
        return torch.randn(len(self.scale), generator=keyed(seed)).to(self.scale) * (self.scale > 0)

    def to_preconditioned(self, x):
        """v = D^(-1) x, zero where D is: a direction x of the parameters in preconditioned coordinates, both (n,)."""
        return torch.where(self.scale > 0, x / self.scale, 0.0)


def scaling(groups, preconditioner, exclude=()):
    """{parameter: its entries of R^(1/2) P^(-1/2)}: the scales of a `Preconditioned` Hessian.

    P is the optimizer's preconditioner, R a block's learning rate over that of Norm, so that the rate of Norm times
    the eigenvalue is to be compared with the stability threshold. groups: the optimizer's, with `block` and `lr`;
    preconditioner: {parameter: diagonal of P}; exclude: block types to leave out.
    Empty where the learning rate of Norm is 0.
    """
    base = norm_rate(groups)
    return {
        p: (group["lr"] / base / preconditioner[p]).sqrt()
        for group in groups
        if base > 0 and group["block"] not in exclude
        for p in group["params"]
        if p in preconditioner
    }


def wide(x):
    """x in float64, on the CPU where x's device has no such numbers (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def norm_rate(groups):
    return next(group["lr"] for group in groups if group["block"] == "Norm")


def keyed(*key):
    """A CPU generator seeded by all numbers of the key, so that every draw has a stream of its own."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
