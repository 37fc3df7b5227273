"""Lanczos and power iteration: extreme eigenvalues of a symmetric matrix, from matrix-vector products.

Everything here takes a matvec, never a model. A matvec maps a vector (n,) to the matrix times it, (n,), in the dtype
and on the device of the vector.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Krylov:
    """The result of k steps of Lanczos: H Q = Q T + r e_k^T, with T tridiagonal.

    values: Ritz values, the eigenvalues of T, ascending, (k,); vectors: its eigenvectors as columns, (k, k); last: norm
    of r, 0 if the Krylov space is invariant, so that the values are exact; basis: Q^T, (k, n).
    """

    values: np.ndarray
    vectors: np.ndarray
    last: float
    basis: torch.Tensor


def lanczos(matvec, start, steps):
    """At most `steps` <= n steps of Lanczos from `start` (n,), not 0, with full re-orthogonalisation.

    Golub and Van Loan, 10.3. Stops early if the Krylov space is invariant.
    Raises FloatingPointError if a product is not finite.
    """
    n = len(start)
    basis = start.new_empty(steps, n)
    basis[0] = start / start.norm()
    diagonal, off_diagonal, scale = [], [], 0.0
    for k in range(steps):
        w = matvec(basis[k])
        if not torch.isfinite(w).all():
            raise FloatingPointError("a product of the matrix is not finite")
        diagonal.append(torch.dot(w, basis[k]).item())
        for _ in range(2):  # the second pass removes what rounding left in the first
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        beta = w.norm().item()
        scale = max(scale, abs(diagonal[-1]) + beta)
        if beta <= 10 * torch.finfo(w.dtype).eps * math.sqrt(n) * scale:  # nothing but rounding is left
            beta = 0.0
        if beta == 0 or k + 1 == steps:
            break
        off_diagonal.append(beta)
        basis[k + 1] = w / beta
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    return Krylov(values, vectors, beta, basis[: k + 1])


@dataclass
class Eigenvalue:
    """An extreme eigenvalue. residual: ||H x - value x|| for the unit `vector` x; converged: within the tolerance."""

    value: float
    vector: torch.Tensor
    residual: float
    products: int
    converged: bool


def power_iteration(matvec, start, products=1000, tolerance=1e-3):
    """The eigenvalue of largest magnitude, by power iteration from `start` (n,).

    Stops when the residual is at most `tolerance` times the value, or after `products` products, not converged.
    """
    x = start / start.norm()
    for count in range(1, products + 1):
        product = matvec(x)
        value = torch.dot(x, product).item()
        residual = (product - value * x).norm().item()
        converged = residual <= tolerance * abs(value)
        if converged or count == products or not math.isfinite(value):
            return Eigenvalue(value, x, residual, count, converged)
        x = product / product.norm()


def largest_eigenvalue(matvec, start, products=1000, tolerance=1e-3, dimension=20):
    """The largest eigenvalue, sign included: the top Ritz value of the Krylov space of the products from `start` (n,).

    Restarted Lanczos: a space has at most `dimension` vectors, all in memory at once, and the next one starts from the
    Ritz vector of the last. Stops when the residual is at most `tolerance` times the value, or after `products`
    products, not converged. Raises what `lanczos` raises.
    """
    x, used = start, 0
    while True:
        space = lanczos(matvec, x, min(dimension, products - used, len(start)))
        used += len(space.values)
        value, residual = float(space.values[-1]), space.last * abs(float(space.vectors[-1, -1]))
        x = space.basis.T @ torch.from_numpy(space.vectors[:, -1].copy()).to(space.basis)
        converged = residual <= tolerance * abs(value)
        if converged or used == products:
            return Eigenvalue(value, x, residual, used, converged)
