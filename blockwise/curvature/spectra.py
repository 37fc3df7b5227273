"""Spectral densities of a symmetric matrix that is known by its products alone, and distances between them."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from blockwise.curvature.eigenvalues import lanczos

# Edges of the bins on which spectra are compared: eigenvalues over the tenth largest, on a logarithmic axis that is
# linear around zero. Twenty bins a decade from 1e-6 on, either side; beyond 1e3 all is one bin.
DECADES, PER_DECADE = (-6, 3), 20
ROUNDING = 1e-10  # of the largest magnitude: below, an eigenvalue is taken for zero


@dataclass
class Spectrum:
    """A spectral density as a sum of points: stochastic Lanczos quadrature's nodes and weights, one array a probe."""

    n: int
    nodes: list
    weights: list  # each sums to 1

    def moment(self, power=1):
        """tr(H^power) / n and its standard error over the probes (None for a single one)."""
        each = [float(w @ x**power) for x, w in zip(self.nodes, self.weights, strict=True)]
        error = np.std(each, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else None
        return float(np.mean(each)), error

    def largest(self, rank=1):
        """The rank-th largest Ritz value, the largest that any probe found; fewer values: the least of them."""
        return max(float(np.sort(x)[-min(rank, len(x))]) for x in self.nodes)

    @property
    def smallest(self):
        return min(float(x.min()) for x in self.nodes)

    @property
    def magnitude(self):
        return max(abs(self.largest()), abs(self.smallest))

    @property
    def has_ten(self):
        """Whether the tenth largest eigenvalue, which spectra are normalised by, is above zero, rounding aside."""
        return self.largest(10) > ROUNDING * self.magnitude

    def histogram(self, edges, scale=1.0):
        """Share of the eigenvalues, over `scale`, in each bin; what lies outside falls into the outermost. Sum 1.

        Quadrature knows the distribution function between its nodes only (half a node's weight lies on either side of
        it, by Chebyshev's, Markov's and Stieltjes' inequalities), so there it is taken to be linear: a node's weight
        spreads over the way to its neighbours. Where exactly it falls within them is chance and differs by probe.
        """
        inner = np.zeros(len(edges) - 2)  # the distribution function at all edges but the outermost two
        for x, w in zip(self.nodes, self.weights, strict=True):
            inner += np.interp(edges[1:-1], x / scale, np.cumsum(w) - w / 2, left=0, right=1) / len(self.nodes)
        return np.diff(inner, prepend=0, append=1)

    def halves(self):
        """The spectrum by every other probe, and by the rest; needs two probes."""
        return [Spectrum(self.n, self.nodes[i::2], self.weights[i::2]) for i in (0, 1)]

    def density(self, grid, sigma):
        """The density on `grid`, each point blurred to a Gaussian of standard deviation sigma."""
        total = np.zeros(len(grid))
        for x, w in zip(self.nodes, self.weights, strict=True):
            total += np.exp(-0.5 * ((grid[:, None] - x) / sigma) ** 2) @ w
        return total / (len(self.nodes) * sigma * math.sqrt(2 * math.pi))


def quadrature(matvec, n, steps=100, probes=10, generator=None, device="cpu", dtype=torch.float32, progress=None):
    """Stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017; arXiv 2402.16788, appendix B.2) -> Spectrum.

    From each of `probes` random unit vectors (normalised Gaussian, drawn from `generator` on the CPU) `steps` steps of
    Lanczos: nodes are the Ritz values, weights the squared first components of T's eigenvectors.
    progress: called after each product.
    """

    def counted(v):
        product = matvec(v)
        if progress:
            progress()
        return product

    nodes, weights = [], []
    for _ in range(probes):
        start = torch.randn(n, generator=generator, dtype=torch.float64).to(device, dtype)
        values, vectors = lanczos(counted, start, steps).eigen()
        nodes.append(values)
        weights.append(vectors[0] ** 2)
    return Spectrum(n, nodes, weights)


def bin_edges():
    """Edges of the common grid; see DECADES."""
    outwards = np.logspace(*DECADES, (DECADES[1] - DECADES[0]) * PER_DECADE + 1)
    return np.concatenate([[-np.inf], -outwards[::-1], outwards, [np.inf]])


def js_distance(p, q):
    """Jensen-Shannon distance of two distributions on the same bins: the root of the divergence, base 2, in [0, 1]."""
    middle = (p + q) / 2

    def divergence(a):
        there = a > 0
        return float(np.sum(a[there] * np.log2(a[there] / middle[there])))

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))


def js_distances(spectra):
    """Jensen-Shannon distance between each two spectra, (k, k), and JS0, their mean over the pairs.

    Each is normalised by its tenth largest eigenvalue, as arXiv 2402.16788 draws them; the grid is `bin_edges`. That
    paper's own formula is not published, and its values beyond 1 show that it is another one. What remains between
    two estimates of the same spectrum is `js_noise`.
    Raises ValueError for a spectrum that has no ten eigenvalues above zero (`Spectrum.has_ten`).
    """
    histograms = []
    for spectrum in spectra:
        scale = spectrum.largest(10)
        if not spectrum.has_ten:
            raise ValueError(f"the tenth largest eigenvalue is {scale}: expected one above 0 to normalise by")
        histograms.append(spectrum.histogram(bin_edges(), scale))
    table = np.array([[js_distance(p, q) for q in histograms] for p in histograms]).reshape((len(histograms),) * 2)
    pairs = table[np.triu_indices(len(table), 1)]
    return table, float(pairs.mean()) if len(pairs) else 0.0


def js_noise(spectra):
    """Mean distance between the two halves of each spectrum's probes: distances below it say nothing.

    Halves are noisier than the whole, so it overstates. Each is normalised as its whole.
    Raises ValueError for a spectrum of a single probe.
    """
    if any(len(spectrum.nodes) < 2 for spectrum in spectra):
        raise ValueError("the noise of a spectrum of one probe is not known: expected two probes or more")
    histograms = ([half.histogram(bin_edges(), one.largest(10)) for half in one.halves()] for one in spectra)
    return float(np.mean([js_distance(*pair) for pair in histograms]))
