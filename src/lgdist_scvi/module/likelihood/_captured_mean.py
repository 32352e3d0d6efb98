"""Expected log1p(CP10K) of a count that is known to be positive."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lgdist_scvi._units import cp10k_per_count

_LOG_TIME_STEP = 0.7
_LOG_TIMES = [-20.0 + _LOG_TIME_STEP * node for node in range(33)]  # the integrand is negligible outside


def expected_captured(any_left: Callable[[Tensor], Tensor], mean: Tensor, library: Tensor) -> Tensor:
    """Expected log1p(CP10K) of entries of some expected counts, (..., n_genes), given that the count is positive.

    log1p(0) = 0, so E[f(x) | x > 0] = E[f(x)] / P(x > 0). With Frullani's integral log1p(a) = int (1 - exp(-a t))
    exp(-t) / t dt, E[f(x)] needs no more than the probability that anything is left of the count after thinning,
    `any_left` of a mean. In log t the integrand is smooth, and the trapezoid rule is exact to about 1e-4 for any mean
    and dispersion.
    """
    mean = mean.clamp(min=1e-12)
    scale = cp10k_per_count(library)
    total = torch.zeros_like(mean)
    for log_t in _LOG_TIMES:
        t = math.exp(log_t)
        total = total + math.exp(-t) * any_left(mean * -torch.expm1(-scale * t))
    return _LOG_TIME_STEP * total / any_left(mean)


def any_poisson(mean: Tensor) -> Tensor:
    """Probability of a positive Poisson count."""
    return -torch.expm1(-mean)
