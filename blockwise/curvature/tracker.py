"""The curvature of a model while it trains."""

import math
import time

import torch

from blockwise.curvature.diagonals import fisher_sharpness
from blockwise.curvature.hessian import HessianVectorProduct, Preconditioned, norm_rate, scaling


class CurvatureTracker:
    """Measures a model while it trains, on one fixed batch; what its methods return are parts of a log's row.

    Of the largest eigenvalue of R^(1/2) P^(-1/2) H P^(-1/2) R^(1/2) it makes few products a time and carries the
    eigenvector v on, as the direction x = R^(1/2) P^(-1/2) v of the parameters: P^(1/2) R^(-1/2) x under the next P
    and R is the transport of arXiv 2606.16768, and needs no old P.

    eigenvector: {name of a parameter: its part of x}, None before the first time: what an exact resume needs.
    solve: (matvec, start) -> eigenvalues.Eigenvalue; threshold: the optimizer's; exclude: block types to leave out;
    seed: for labels and the first start; options: micro, all_reduce and precision, as for `hessian.gradient`.
    """

    def __init__(self, model, batch, solve, threshold, exclude=(), seed=0, **options):
        self.model, self.batch, self.solve, self.threshold = model, batch, solve, threshold
        self.exclude, self.seed, self.options = exclude, seed, options
        self.names = {p: name for name, p in model.named_parameters()}
        self.eigenvector = None

    def sharpness(self, draw, groups, batch=None):
        """sharpness/BLOCK of every block, on labels of this number. batch: another than its own."""
        blocks = {}
        for group in groups:
            blocks.setdefault(group["block"], []).extend(group["params"])
        averages = fisher_sharpness(self.model, blocks, batch or self.batch, self.seed, draw, **self.options)
        return {f"sharpness/{block}": value for block, value in averages.items()}

    def curvature(self, groups, preconditioner):
        """curvature/lambda_max and what belongs to it; nothing where no coordinate takes part, as before any state.

        A product that is not finite makes the eigenvalue NaN, and the next start a new one.
        """
        started = time.perf_counter()
        scales = scaling(groups, preconditioner, self.exclude)
        if not any(scale.any() for scale in scales.values()):
            return {}
        products = HessianVectorProduct(self.model, self.batch, scales, **self.options)
        matrix = Preconditioned(products, scales.values())
        start = matrix.to_preconditioned(self.warm_start(products.params))
        try:
            top = self.solve(matrix, start if start.any() else matrix.random(self.seed))
            value, residual = top.value, top.residual
        except FloatingPointError:
            value = residual = math.nan
        self.eigenvector = None
        if math.isfinite(value):
            pieces = (matrix.scale * top.vector).split([p.numel() for p in products.params])
            pairs = zip(products.params, pieces, strict=True)
            self.eigenvector = {self.names[p]: piece.view_as(p).clone() for p, piece in pairs}
        return {
            "curvature/lambda_max": value,
            "curvature/lr_lambda": norm_rate(groups) * value,
            "curvature/threshold": self.threshold,
            "curvature/residual": residual,
            "curvature/ms": 1000 * (time.perf_counter() - started),
        }

    def warm_start(self, params):
        """The vector over these parameters, (n,); 0 for those that it has no part of."""
        vector = self.eigenvector or {}
        parts = [vector.get(self.names[p]) for p in params]
        parts = [torch.zeros_like(p) if x is None else x.to(p) for p, x in zip(params, parts, strict=True)]
        return torch.cat([part.flatten() for part in parts])
