"""Poisson counts: the moments of captured values, and how strongly pooled rates are shrunk."""

from __future__ import annotations

import numpy as np

MOLECULES = (30.0, 100.0, 300.0, 1e3, 2e3, 4e3, 8e3, 16e3, 32e3)  # s to try in (counts + s * gene rate) / (library + s)
_LARGE = 100.0  # expected counts above which an expansion replaces the sum over counts
_EXPECTED_COUNTS = np.geomspace(1e-3, 1e5, 81)  # where the moments of captured values are tabulated


def moments_given_positive(expected: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of log1p(scale * x), given x > 0, for x ~ Poisson(expected); all (n,)."""
    from scipy.stats import poisson

    mean, variance = np.empty_like(expected), np.empty_like(expected)
    large = expected > _LARGE
    # delta method: d/dx log1p(scale * x) = scale / (1 + scale * x)
    variance[large] = expected[large] * (scale[large] / (1 + scale[large] * expected[large])) ** 2
    mean[large] = np.log1p(scale[large] * expected[large]) - variance[large] / 2
    order = np.flatnonzero(~large)
    order = order[np.argsort(expected[order])]  # blocks of alike expectations need sums of alike length
    for block in np.array_split(order, max(1, len(order) // 10_000)):
        if not len(block):
            continue
        top = expected[block].max()
        x = np.arange(1, int(top + 12 * np.sqrt(top) + 20))
        weights = poisson.pmf(x, expected[block, None])
        weights /= weights.sum(axis=1, keepdims=True)
        values = np.log1p(scale[block, None] * x)
        mean[block] = (weights * values).sum(axis=1)
        variance[block] = (weights * (values - mean[block, None]) ** 2).sum(axis=1)
    return mean, variance


def variance_given_positive(mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Variance of captured values, log1p(scale * x), about a mean that Poisson counts x > 0 explain, (n_obs, n_genes).

    Of a small count itself, that cannot be told: a 1 is seen of one molecule expected, and of a tenth. `mean` is the
    expected log1p(scale * x), (n_obs, n_genes), and `scale` that of each spot, (n_obs, 1).
    """
    expected = np.broadcast_to(_EXPECTED_COUNTS, (len(scale), len(_EXPECTED_COUNTS)))
    moments = moments_given_positive(expected.ravel(), np.broadcast_to(scale, expected.shape).ravel())
    tables = (moment.reshape(expected.shape) for moment in moments)
    return np.stack([np.interp(*row) for row in zip(mean, *tables, strict=True)])
