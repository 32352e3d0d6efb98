"""Low-dimensional descriptions of spots that the baselines share."""

from __future__ import annotations

import numpy as np

from lgdist_scvi.metrics.baselines._data import CountData, LogData

_DETECTION_WEIGHT = np.float32(0.5)  # of "was it observed" beside "how much", in units of log1p(CP10K)


def truncated_svd(matrix: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular vectors and values: u (n, rank), s (rank,), vt (rank, p)."""
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(matrix, min(rank, *matrix.shape), n_iter=4, random_state=seed)


def spot_features(data: LogData) -> tuple[np.ndarray, np.ndarray]:
    """Describe spots by residuals of values and by which entries were observed, centred; float32 (n_obs, n_vars) each.

    A spot without any observed entry is all zero, that is average: that it has none is no evidence about its
    expression.
    """
    detected = data.mask - data.mask.mean(axis=0, dtype=np.float32)
    detected[~data.mask.any(axis=1)] = 0
    return data.residuals, _DETECTION_WEIGHT * detected


def pearson_residuals(data: CountData) -> np.ndarray:
    """(counts - expected) / sqrt(expected) under the gene means, float32, (n_obs, n_vars)."""
    expected = np.outer(data.library, data.gene_rate).astype(np.float32)
    return np.divide(data.counts - expected, np.sqrt(expected), out=np.zeros_like(expected), where=expected > 0)


def rates_from_residuals(data: CountData, scores: np.ndarray, loadings: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Map low-rank Pearson residuals back to rates, (n_obs, columns), at least `floor` times the gene's."""
    gene_rate = data.gene_rate[data.columns]
    scale = np.sqrt(np.where(data.library > 0, data.library, np.inf))
    residuals = (scores / scale[:, None]) @ loadings[:, data.columns]
    return np.maximum(gene_rate + residuals * np.sqrt(gene_rate), floor * gene_rate)
