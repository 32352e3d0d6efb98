"""Spatial structure and correlation of expression, gene by gene."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from lgdist_scvi._moran import morans_i_per_slide

_NEGLIGIBLE = 1e-10  # variance below which a gene is constant


def morans_i(values: np.ndarray, graph: sparse.csr_matrix, samples: np.ndarray) -> np.ndarray:
    """Moran's I of each gene within slides, averaged over slides by number of spots, (n_vars,).

    As in :func:`~lgdist_scvi._moran.morans_i_per_slide`; NaN for genes that are constant on every slide.
    """
    per_slide, n_spots = morans_i_per_slide(values, graph, samples)
    return np.ma.average(np.ma.masked_invalid(per_slide), axis=0, weights=n_spots).filled(np.nan)


def mean_correlation(values: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
    """Mean absolute correlation over spots of some genes (columns; ``None``: of all) with all other genes, (n_genes,).

    Constant genes correlate with nothing.
    """
    genes = np.arange(values.shape[1]) if genes is None else genes
    centred = (values - values.mean(axis=0)).astype(np.float32)
    norm = np.linalg.norm(centred, axis=0)
    centred /= np.where(norm**2 > _NEGLIGIBLE * len(values), norm, np.inf)
    absolute = np.abs(centred[:, genes].T @ centred)
    absolute[np.arange(len(genes)), genes] = 0
    return absolute.sum(axis=1) / max(1, values.shape[1] - 1)
