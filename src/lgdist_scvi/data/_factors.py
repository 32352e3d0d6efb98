"""Factor analysis of incomplete data: the linear part of what genes of a spot tell about each other."""

from __future__ import annotations

import numpy as np
from sklearn.utils.extmath import randomized_svd

_N_STEPS = 10


def fit_factors(residuals: np.ndarray, weights: np.ndarray, n_factors: int) -> np.ndarray:
    """Fit residual = weight * (loadings @ score) + noise of variance 1 by expectation-maximisation.

    Scores have a standard normal prior and loadings a normal prior of one scale per factor, learnt with them, which prunes
    factors that the data do not support (Tipping & Bishop 1999, "Probabilistic principal component analysis"; Bishop
    1998, "Bayesian PCA"). Entries of weight 0 are missing and do not enter.

    Parameters
    ----------
    residuals
        (n_obs, n_genes), 0 where missing.
    weights
        Strength of the signal in units of the noise, (n_obs, n_genes), 0 where missing.
    n_factors
        Number of factors; those that the data cannot have are 0.

    Returns
    -------
    Loadings, float32, (n_genes, n_factors).
    """
    n_obs, n_genes = residuals.shape
    rank = max(0, min(n_factors, n_obs - 1, n_genes - 1))
    result = np.zeros((n_genes, n_factors), dtype=np.float32)
    if rank == 0 or not weights.any():
        return result
    _, singular, axes = randomized_svd(residuals, rank + 1, n_iter=4, random_state=0)
    strength = np.maximum(singular[:rank] ** 2 - singular[rank] ** 2, 1e-6 * singular[0] ** 2 + 1e-12) / n_obs
    loadings = (axes[:rank].T * np.sqrt(strength / weights.mean())).astype(np.float32)
    squares = weights**2
    pairs = np.triu_indices(rank)
    for _ in range(_N_STEPS):
        score, covariance = _posterior(residuals, weights, squares, loadings)
        second = covariance + score[:, :, None] * score[:, None, :]
        gram = _symmetric(squares.T @ second[:, *pairs], pairs, rank)
        moments = (residuals * weights).T @ score
        prior = 1.0 / np.maximum((loadings**2).mean(axis=0), 1e-6)
        loadings = np.linalg.solve(gram + prior[:, None] * np.eye(rank, dtype=np.float32), moments[:, :, None])
        loadings = loadings[:, :, 0].astype(np.float32)
    result[:, :rank] = loadings
    return result


def _posterior(
    residuals: np.ndarray, weights: np.ndarray, squares: np.ndarray, loadings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean, (n_obs, rank), and covariance, (n_obs, rank, rank), of the scores."""
    rank = loadings.shape[1]
    pairs = np.triu_indices(rank)
    precision = _symmetric(squares @ (loadings[:, pairs[0]] * loadings[:, pairs[1]]), pairs, rank)
    covariance = np.linalg.inv(precision + np.eye(rank, dtype=np.float32))
    linear = (residuals * weights) @ loadings
    return (covariance @ linear[:, :, None])[:, :, 0], covariance


def _symmetric(upper: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], rank: int) -> np.ndarray:
    """Symmetric matrices from the entries on and above their diagonals, (n, n_pairs) -> (n, rank, rank)."""
    full = np.empty((len(upper), rank, rank), dtype=np.float32)
    full[:, pairs[0], pairs[1]] = upper
    full[:, pairs[1], pairs[0]] = upper
    return full
