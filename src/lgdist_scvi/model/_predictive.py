"""The predictive distribution of a measured value: spread over latents and measurement noise together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lgdist_scvi._expression import COUNTS_PER

_SMALLEST_THETA, _LARGEST_THETA = 1e-3, 1e8


@dataclass
class CountPredictive:
    """Negative binomial with the mean and variance of the mixture over latents; in log1p(CP10K).

    Attributes
    ----------
    mean, variance
        Of the count, (n, n_genes).
    library
        Library size in counts, (n, 1).
    captured
        Whether the count is known to be positive.
    """

    mean: np.ndarray
    variance: np.ndarray
    library: np.ndarray
    captured: bool

    def __post_init__(self) -> None:
        mean = np.maximum(self.mean.astype(np.float64), 1e-9)
        extra = np.maximum(self.variance.astype(np.float64) - mean, 0.0)
        theta = np.clip(mean**2 / np.maximum(extra, 1e-300), _SMALLEST_THETA, _LARGEST_THETA)
        self._counts = stats.nbinom(theta, theta / (theta + mean))
        self._nothing = self._counts.pmf(0) if self.captured else 0.0

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Smallest value whose cumulative probability reaches `probability`, log1p(CP10K)."""
        counts = self._counts.ppf(np.clip(self._nothing + probability * (1 - self._nothing), 0.0, 1 - 1e-12))
        if self.captured:
            counts = np.maximum(counts, 1.0)
        return np.log1p(counts / self.library * COUNTS_PER)

    def mid_rank(self, counts: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Randomised probability integral transform of counts: uniform if the distribution is right."""
        below = self._counts.cdf(counts - 1)
        rank = below + uniform * self._counts.pmf(counts)
        return np.clip((rank - self._nothing) / np.maximum(1 - self._nothing, 1e-12), 0.0, 1.0)


@dataclass
class NormalPredictive:
    """Gaussian in log1p(CP10K).

    Attributes
    ----------
    mean, variance
        Of the value, (n, n_genes).
    library
        Library size in counts, (n, 1).
    """

    mean: np.ndarray
    variance: np.ndarray
    library: np.ndarray

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """Value whose cumulative probability is `probability`, log1p(CP10K); a captured value is at least one count's."""
        value = stats.norm.ppf(probability, self.mean, np.sqrt(self.variance))
        return np.maximum(value, np.log1p(COUNTS_PER / self.library))

    def mid_rank(self, counts: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Probability integral transform of counts; `uniform` is not needed."""
        values = np.log1p(counts / self.library * COUNTS_PER)
        return stats.norm.cdf(values, self.mean, np.sqrt(self.variance))


def conformal_levels(rank: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Levels at which central intervals must be drawn to cover at the levels asked for (split conformal prediction).

    Parameters
    ----------
    rank
        Probability integral transforms of entries that were set aside, (n,).
    levels
        Levels asked for, between 0 and 1.

    Returns
    -------
    The finite-sample quantiles of ``|2 rank - 1|`` at `levels` (Vovk et al. 2005), capped at 1.
    """
    n = len(rank)
    if n == 0:
        return np.asarray(levels, dtype=np.float64)
    score = np.sort(np.abs(2 * rank - 1))
    position = np.ceil((n + 1) * np.asarray(levels)).astype(int) - 1
    return np.where(position < n, score[np.clip(position, 0, n - 1)], 1.0)
