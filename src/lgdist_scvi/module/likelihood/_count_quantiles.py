"""Quantiles of negative binomial counts."""

from __future__ import annotations

import numpy as np
from scipy import stats

_LARGEST_MEAN = 30.0  # above, sums are long, and begin with next to nothing
_LARGEST_PROBABILITY = 1.0 - 1e-4  # of which less than 1e-9 is lost by summing
_MOST_TERMS = 64


def nbinom_quantile(probability: np.ndarray, mean: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Smallest counts that, with all smaller ones, have these probabilities; float64, all of one shape.

    Of negative binomials with these means (counts) and inverse dispersions. A small count is found by adding probabilities up,
    which takes a fraction of the time of the search of :data:`scipy.stats.nbinom`, that has the others.
    """
    shape = mean.shape
    probability, mean, theta = (np.broadcast_to(array, shape).ravel() for array in (probability, mean, theta))
    count = np.zeros(len(mean))
    short = (mean <= _LARGEST_MEAN) & (probability <= _LARGEST_PROBABILITY)
    chance = np.exp(-theta * np.log1p(mean / theta))  # of nothing
    missing = probability - chance
    left = np.flatnonzero(short & (missing > 0.0))
    chance, missing, theta_left, ratio = chance[left], missing[left], theta[left], (mean / (theta + mean))[left]
    for term in range(1, _MOST_TERMS + 1):
        chance *= (theta_left + term - 1) / term * ratio
        missing -= chance
        count[left] = term
        more = missing > 0.0
        left, chance, missing, theta_left, ratio = (array[more] for array in (left, chance, missing, theta_left, ratio))
        if not len(left):
            break
    left = np.append(left, np.flatnonzero(~short))
    if len(left):
        mean, theta = mean[left], theta[left]
        count[left] = np.maximum(
            stats.nbinom.ppf(probability[left], theta, theta / (theta + mean)), 0.0
        )  # of 0 it is -1
    return count.reshape(shape)
