"""Factor analysis of incomplete data: the linear part of what genes of a spot tell about each other."""

from __future__ import annotations

import numpy as np
from sklearn.utils.extmath import randomized_svd

_N_STEPS = 10
_SMALLEST_NOISE = 0.02


def fit_factors(
    residuals: np.ndarray, weights: np.ndarray, n_factors: int, fit_noise: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Fit residual = weight * (loadings @ score) + noise by expectation-maximisation.

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
    fit_noise
        Whether to learn the variance of the noise per gene; otherwise it is 1.

    Returns
    -------
    Loadings, (n_genes, n_factors), and variance of the noise, (n_genes,), float32.
    """
    n_obs, n_genes = residuals.shape
    rank = max(0, min(n_factors, n_obs - 1, n_genes - 1))
    result = np.zeros((n_genes, n_factors), dtype=np.float32)
    noise = np.ones(n_genes, dtype=np.float32)
    if rank == 0 or not weights.any():
        return result, noise
    _, singular, axes = randomized_svd(residuals, rank + 1, n_iter=4, random_state=0)
    strength = np.maximum(singular[:rank] ** 2 - singular[rank] ** 2, 1e-6 * singular[0] ** 2 + 1e-12) / n_obs
    loadings = (axes[:rank].T * np.sqrt(strength / weights.mean())).astype(np.float32)
    squares = weights**2
    pairs = np.triu_indices(rank)
    for _ in range(_N_STEPS):
        score, covariance = _posterior(residuals, weights, squares, loadings, noise)
        second = covariance + score[:, :, None] * score[:, None, :]
        gram = _symmetric(squares.T @ second[:, *pairs], pairs, rank)
        moments = (residuals * weights).T @ score
        prior = noise[:, None] / np.maximum((loadings**2).mean(axis=0), 1e-6)
        loadings = np.linalg.solve(gram + prior[:, :, None] * np.eye(rank, dtype=np.float32), moments[:, :, None])
        loadings = loadings[:, :, 0].astype(np.float32)
        if fit_noise:
            squared = (residuals**2).sum(axis=0) - 2 * (loadings * moments).sum(axis=1)
            squared += np.einsum("gk,gkl,gl->g", loadings, gram, loadings, optimize=True)
            n_seen = (weights > 0).sum(axis=0)
            noise = np.maximum((squared + 1.0) / (n_seen + 1.0), _SMALLEST_NOISE).astype(np.float32)
    result[:, :rank] = loadings
    return result, noise


def _posterior(
    residuals: np.ndarray, weights: np.ndarray, squares: np.ndarray, loadings: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean, (n_obs, rank), and covariance, (n_obs, rank, rank), of the scores."""
    rank = loadings.shape[1]
    pairs = np.triu_indices(rank)
    scaled = loadings / np.sqrt(noise)[:, None]
    precision = _symmetric(squares @ (scaled[:, pairs[0]] * scaled[:, pairs[1]]), pairs, rank)
    covariance = np.linalg.inv(precision + np.eye(rank, dtype=np.float32))
    linear = (residuals * weights / np.sqrt(noise)) @ scaled
    return (covariance @ linear[:, :, None])[:, :, 0], covariance


def _symmetric(upper: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], rank: int) -> np.ndarray:
    """Symmetric matrices from the entries on and above their diagonals, (n, n_pairs) -> (n, rank, rank)."""
    full = np.empty((len(upper), rank, rank), dtype=np.float32)
    full[:, pairs[0], pairs[1]] = upper
    full[:, pairs[1], pairs[0]] = upper
    return full
