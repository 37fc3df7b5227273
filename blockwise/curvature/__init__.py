"""The mathematics of curvature, which training and measuring share: products, diagonals, eigenvalues, spectra."""
