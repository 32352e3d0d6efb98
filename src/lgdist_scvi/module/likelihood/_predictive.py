"""The predictive distribution of a measured count: spread over latents and measurement noise together."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

from lgdist_scvi._units import cp10k_per_count, from_cp10k, to_log1p
from lgdist_scvi.module.likelihood._count_quantiles import nbinom_quantile

_SMALLEST_THETA, _LARGEST_THETA = 1e-3, 1e8
_SMALLEST_TAIL = 1e-30  # smaller probabilities count as equal
_LARGEST_LOG = 40.0  # of a count; keeps exp finite
_ROUNDING = 2e-6  # relative, of a value: one at an end is inside however it was rounded
_TAIL_ROUNDING = 1e-9  # relative
_SMALLEST_EXACT_TAIL = 1e-5  # whose complement to 1 holds it to that


@dataclass
class Predictive(ABC):
    """Distribution of counts, and its central intervals.

    Mean and variance are (n, n_genes), library sizes in counts (n, 1).
    """

    mean: np.ndarray
    variance: np.ndarray
    library: np.ndarray

    def of_genes(self, positions: np.ndarray) -> Self:
        """The same for some of the genes."""
        return replace(self, mean=self.mean[:, positions], variance=self.variance[:, positions])

    def of_entries(self, rows: np.ndarray, genes: np.ndarray) -> Self:
        """The same for single entries, all of shape (n_entries,)."""
        mean, variance = self.mean[rows, genes], self.variance[rows, genes]
        return replace(self, mean=mean, variance=variance, library=self.library[rows, 0])

    @abstractmethod
    def at_most(self, counts: np.ndarray) -> np.ndarray:
        """Probability of these counts or less."""

    @abstractmethod
    def at_least(self, counts: np.ndarray) -> np.ndarray:
        """Probability of these counts or more."""

    def given_captured(self) -> Self:
        """The same counts, known to be positive."""
        return self

    @abstractmethod
    def ends(self, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest count outside which `tail` or less lies on either side."""

    def score(self, counts: np.ndarray) -> np.ndarray:
        """How far out counts lie: the half-width of the narrowest central interval that holds them.

        In standard deviations of a normal distribution with the same tail probability, whatever the distribution; 0 for its
        median. No uniform noise breaks ties: an :meth:`interval` that reaches to a count's score includes the count, and that of
        anything smaller does not.
        """
        tail = np.minimum(self.at_most(counts), self.at_least(counts))
        return -ndtri(np.clip(tail, _SMALLEST_TAIL, 0.5))

    def interval(self, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end, log1p(CP10K), float32, of the counts whose :meth:`score` is at most this."""
        tail = np.clip(ndtr(-score) * (1 - _TAIL_ROUNDING), _SMALLEST_TAIL, 0.5)
        lower, upper = self.ends(np.broadcast_to(tail, self.mean.shape))
        scale = cp10k_per_count(self.library)
        lower, upper = np.log1p(lower * scale) * (1 - _ROUNDING), np.log1p(upper * scale) * (1 + _ROUNDING)
        return lower.astype(np.float32), upper.astype(np.float32)


@dataclass
class CountPredictive(Predictive):
    """Negative binomial with the mean and variance, in counts, of the mixture over latents.

    With `captured` the count is known to be positive.
    """

    captured: bool

    def __post_init__(self) -> None:
        mean = np.maximum(self.mean.astype(np.float64), 1e-9)
        extra = np.maximum(self.variance.astype(np.float64) - mean, 0.0)
        theta = np.clip(mean**2 / np.maximum(extra, 1e-300), _SMALLEST_THETA, _LARGEST_THETA)
        self._mean, self._theta = mean, theta
        self._counts = stats.nbinom(theta, theta / (theta + mean))
        self._nothing = self._counts.pmf(0) if self.captured else 0.0
        self._something = np.maximum(self._counts.sf(0), 1e-300) if self.captured else 1.0

    def given_captured(self) -> CountPredictive:
        """The same counts, known to be positive."""
        return replace(self, captured=True)

    def at_most(self, counts: np.ndarray) -> np.ndarray:
        return (self._counts.cdf(counts) - self._nothing) / self._something

    def at_least(self, counts: np.ndarray) -> np.ndarray:
        return self._counts.sf(counts - 1) / self._something

    def ends(self, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below, above = self._nothing + tail * self._something, tail * self._something
        with warnings.catch_warnings():
            # far out in an extreme distribution, scipy gives the last count that it tried, and says so
            warnings.simplefilter("ignore", RuntimeWarning)
            lower = nbinom_quantile(np.minimum(below, 1.0 - 1e-16), self._mean, self._theta)
            upper = self._from_above(above)
        least = float(self.captured)
        lower = np.maximum(lower, least)
        return lower, np.maximum(upper, lower)

    def _from_above(self, tail: np.ndarray) -> np.ndarray:
        """Inverse of the survival function; by the inverse of the other side, twenty times as fast, where that is as exact."""
        far = tail < _SMALLEST_EXACT_TAIL
        count = nbinom_quantile(np.where(far, 0.0, 1.0 - tail), self._mean, self._theta)
        if far.any():
            count[far] = stats.nbinom.isf(tail[far], *(parameter[far] for parameter in self._counts.args))
        return count


@dataclass
class NormalPredictive(Predictive):
    """Gaussian in log1p(CP10K) of a captured value, rounded to whole counts, at least 1; mean and variance in log1p(CP10K).

    A measured value is that of a count: the ends of an interval are values that a count can take.
    """

    def __post_init__(self) -> None:
        self._deviation = np.sqrt(self.variance.astype(np.float64))
        self._mean = self.mean.astype(np.float64)

    def _standardised(self, counts: np.ndarray) -> np.ndarray:
        return (to_log1p(np.maximum(counts, 0.5), self.library) - self._mean) / self._deviation

    def at_most(self, counts: np.ndarray) -> np.ndarray:
        return ndtr(self._standardised(counts + 0.5))

    def at_least(self, counts: np.ndarray) -> np.ndarray:
        return np.where(counts > 1, ndtr(-self._standardised(counts - 0.5)), 1.0)

    def ends(self, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half_width = -ndtri(tail) * self._deviation
        lower, upper = (
            from_cp10k(np.expm1(np.minimum(self._mean + sign * half_width, _LARGEST_LOG)) * self.library)
            for sign in (-1.0, 1.0)
        )
        lower = np.maximum(np.ceil(lower - 0.5), 1.0)
        return lower, np.maximum(np.floor(upper + 0.5), lower)
