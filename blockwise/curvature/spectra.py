"""Spectral densities by stochastic Lanczos quadrature, and Jensen-Shannon distances between them."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from blockwise.curvature.eigenvalues import lanczos

# Spectra are compared on common bins of eigenvalues over the tenth largest: on either side of zero 20 bins a decade
# from 1e-6 to 1e3, one bin around zero, and one beyond each end.
OUTWARDS = np.logspace(-6, 3, 9 * 20 + 1)
BIN_EDGES = np.concatenate([[-np.inf], -OUTWARDS[::-1], OUTWARDS, [np.inf]])
ROUNDING = 1e-10  # an eigenvalue below this share of the largest magnitude counts as zero


@dataclass
class Spectrum:
    """Spectral density of an (n, n) matrix as quadrature nodes and weights, each a list of one array per probe."""

    n: int
    nodes: list
    weights: list  # each sums to 1

    def mean(self):
        """tr(H) / n and its standard error over the probes (None for a single probe)."""
        each = [float(w @ x) for x, w in zip(self.nodes, self.weights, strict=True)]
        error = np.std(each, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else None
        return float(np.mean(each)), error

    def largest(self, rank=1):
        """The rank-th largest Ritz value, maximum over the probes; of fewer values the smallest."""
        return max(float(np.sort(x)[-min(rank, len(x))]) for x in self.nodes)

    @property
    def smallest(self):
        return min(float(x.min()) for x in self.nodes)

    @property
    def has_ten(self):
        """Whether the tenth largest eigenvalue, which spectra are normalised by, is above zero beyond rounding."""
        return self.largest(10) > ROUNDING * max(abs(self.largest()), abs(self.smallest))

    def histogram(self, edges, scale=1.0):
        """Share of the eigenvalues, divided by `scale`, in each bin; the outermost bins also take what lies outside.

        Quadrature bounds the cumulative distribution at its nodes (inequalities of Chebyshev, Markov and Stieltjes),
        with half of a node's weight on either side. Between nodes it is interpolated linearly, which spreads a node's
        weight towards its neighbours: where nodes fall within a bin is chance and differs from probe to probe.
        """
        inner = np.zeros(len(edges) - 2)  # the cumulative distribution at all edges but the outermost two
        for x, w in zip(self.nodes, self.weights, strict=True):
            inner += np.interp(edges[1:-1], x / scale, np.cumsum(w) - w / 2, left=0, right=1) / len(self.nodes)
        return np.diff(inner, prepend=0, append=1)


def quadrature(matvec, n, steps=100, probes=10, generator=None, device="cpu", dtype=torch.float32):
    """Stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017; arXiv 2402.16788, appendix B.2) -> Spectrum.

    `steps` steps of Lanczos from each of `probes` random unit vectors (normalised Gaussian, drawn from `generator` on
    the CPU): nodes are the Ritz values, weights the squared first components of the eigenvectors of T.
    matvec: that of `eigenvalues`, (n,) -> (n,); device, dtype: of the vectors.
    """
    nodes, weights = [], []
    for _ in range(probes):
        start = torch.randn(n, generator=generator, dtype=torch.float64).to(dtype).to(device)
        found = lanczos(matvec, start, steps)
        nodes.append(found.values)
        weights.append(found.vectors[0] ** 2)
    return Spectrum(n, nodes, weights)


def js_distance(p, q):
    """Jensen-Shannon distance of two distributions on the same bins: root of the divergence in bits, in [0, 1]."""
    middle = (p + q) / 2

    def divergence(a):
        there = a > 0
        return float(np.sum(a[there] * np.log2(a[there] / middle[there])))

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))


def js_distances(spectra):
    """Jensen-Shannon distances between all pairs of k spectra, (k, k), and JS0, the mean over the pairs.

    Each spectrum is divided by its tenth largest eigenvalue, as arXiv 2402.16788 plots them, and binned by BIN_EDGES.
    That paper does not publish its formula, and its values above 1 show that it is a different one. `js_noise` is how
    far apart two estimates of the same spectrum are. All are to have ten eigenvalues above zero (`Spectrum.has_ten`).
    """
    histograms = [spectrum.histogram(BIN_EDGES, spectrum.largest(10)) for spectrum in spectra]
    table = np.array([[js_distance(p, q) for q in histograms] for p in histograms]).reshape((len(histograms),) * 2)
    pairs = table[np.triu_indices(len(table), 1)]
    return table, float(pairs.mean()) if len(pairs) else None


def js_noise(spectra):
    """Mean distance between the two halves of each spectrum's probes: smaller distances are not significant.

    It overstates the noise, since half of the probes are noisier than all. A half is normalised as the whole is.
    """
    distances = []
    for spectrum in spectra:
        halves = [Spectrum(spectrum.n, spectrum.nodes[i::2], spectrum.weights[i::2]) for i in (0, 1)]
        distances.append(js_distance(*(half.histogram(BIN_EDGES, spectrum.largest(10)) for half in halves)))
    return float(np.mean(distances))
