"""Calibration on held-out entries: noise, reach of intervals and size of the standard deviation, by kind of entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lgdist_scvi.inference._conformal import N_THIRDS, Intervals, Scores, expression_strata, fit_intervals
from lgdist_scvi.inference._entry_kinds import (
    ENTRY_KINDS,
    N_NOISE_SAMPLES,
    Batch,
    CalibrationCase,
    EntryKind,
    HeldOutSpots,
    hidden_cases,
)

_MIN_SPOTS = 5  # from which the size of the error is estimated
_PRIOR_ERROR, _SMALLEST_RATIO = 2.0, 0.5  # of the ratio of variances


@dataclass
class KindCalibration:
    """Calibration of one kind of entry.

    A factor of the standard deviation, and intervals, ``None`` where those of hidden entries hold.
    """

    std_factor: float
    intervals: Intervals | None


@dataclass
class Calibration:
    """Calibration on held-out entries of the training data.

    Attributes
    ----------
    kinds
        By the name of the kind of entry, see :mod:`lgdist_scvi.inference._entry_kinds`.
    skill
        By estimand, what :func:`lgdist_scvi.inference.measure_skill` gives; empty before it is measured.
    """

    kinds: dict[str, KindCalibration]
    skill: dict[str, dict[str, Any]] = field(default_factory=dict)

    def _applying(self, batch: Batch) -> Iterable[tuple[np.ndarray, KindCalibration]]:
        return ((kind.applies(batch), self.kinds[kind.name]) for kind in ENTRY_KINDS if kind.name in self.kinds)

    def std_factor(self, batch: Batch) -> np.ndarray:
        """Factor of the standard deviation of each entry, (batch, n_genes) or (batch, 1)."""
        factor: Any = 1.0
        for applies, kind in self._applying(batch):
            factor = np.where(applies, kind.std_factor, factor)
        return factor

    def reach(self, batch: Batch, estimand: str, level: float) -> np.ndarray:
        """Score up to which the intervals of each entry reach, (batch, n_genes)."""
        reach: Any = 0.0
        for applies, kind in self._applying(batch):
            if kind.intervals is not None:
                reach = np.where(applies, kind.intervals.reach(estimand, level), reach)
        return reach

    @property
    def std_factors(self) -> dict[str, float]:
        """Factor of the standard deviation by kind of entry."""
        return {name: kind.std_factor for name, kind in self.kinds.items()}

    @property
    def hidden(self) -> Intervals:
        """Intervals of hidden entries, or of unseen slides: those that stand in for kinds without intervals of their own."""
        return next(kind.intervals for kind in self.kinds.values() if kind.intervals is not None)


def fit_noise(spots: HeldOutSpots) -> dict[str, float]:
    """Bring the likelihood's noise to the size seen on held-out entries; the factor of its variance in each third of the genes.

    Training hides far more than prediction does, so that the noise it learns does not fit prediction.
    """
    likelihood = spots.predictor.module.likelihood
    totals = torch.zeros(3, len(likelihood.gene_rate), dtype=torch.float64)
    for (case,) in hidden_cases(spots.predictor, spots.for_noise, N_NOISE_SAMPLES):
        prediction = case.prediction
        mean, variance = likelihood.in_measured_unit(*prediction.moments(likelihood.modelled), prediction.library)
        square, sampling = likelihood.squared_error(case.counts, case.per_count, mean, prediction.library)
        parts = (square - variance, sampling, likelihood.noise_variance(mean, variance))
        for total, part in zip(totals, parts, strict=True):
            total += (part * case.hidden).cpu().double().sum(0)
    third = torch.from_numpy(expression_strata(likelihood.expression.cpu().numpy()))
    pooled = torch.zeros(len(totals), N_THIRDS, dtype=torch.float64).index_add_(1, third, totals)
    if not (pooled[-1] > 0).all():
        return {}
    factor = likelihood.scale_noise(*pooled[:, third].float().to(likelihood.gene_rate.device))
    if factor is None:
        return {}
    return {
        name: float(factor[(third == one).to(factor.device)][0]) for one, name in enumerate(("low", "middle", "high"))
    }


def fit_calibration(spots: HeldOutSpots) -> Calibration:
    """Calibrate intervals and standard deviations of all kinds of entries."""
    hold_outs = spots.predictor.module.hold_outs
    return Calibration({kind.name: _fit_kind(kind, spots) for kind in ENTRY_KINDS if kind.hold_out in hold_outs})


def _fit_kind(kind: EntryKind, spots: HeldOutSpots) -> KindCalibration:
    likelihood = spots.predictor.module.likelihood
    nothing = (np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    scores: list[Scores] = [dict.fromkeys(likelihood.estimands, nothing)]
    squares, moments = [], []
    for cases in kind.cases(spots):
        squares.append(np.mean([_squares(case) for case in cases], axis=0))
        if kind.has_intervals:
            for case in cases:
                of_case, of_spots = _scores(case)
                scores.append(of_case)
                moments.append(of_spots)
    rate = likelihood.expression.cpu().numpy()
    intervals = fit_intervals(_joined(scores), rate, _signal(moments, len(rate))) if kind.has_intervals else None
    return KindCalibration(_std_factor(squares), intervals)


def _scores(case: CalibrationCase) -> tuple[Scores, np.ndarray]:
    """How far out hidden entries lie in their predictive distributions, by estimand, and the :func:`_moments` of these."""
    estimands = case.prediction.likelihood.estimands
    predictive = case.prediction.predictive(estimands[0])
    counts, hidden = case.counts_there.cpu().numpy(), case.hidden.cpu().numpy()
    scores: Scores = {}
    for estimand in estimands:
        rows, genes = np.nonzero(hidden & (counts > 0) if estimand == "captured" else hidden)
        entries = predictive.of_entries(rows, genes)
        # all estimands look at the same counts
        entries = entries.given_captured() if estimand == "captured" else entries
        scores[estimand] = entries.score(counts[rows, genes]), genes, case.place[rows]
    return scores, _moments(predictive.mean, predictive.variance)


def _squares(case: CalibrationCase) -> np.ndarray:
    """Squared error without the noise of counts and of few samples, and the variance that is claimed, (2, batch).

    Sums over hidden entries, weighted as the likelihood says.
    """
    prediction, likelihood, share = case.prediction, case.prediction.likelihood, case.share
    modelled, library = likelihood.modelled, case.prediction.library
    spread = prediction.moments(modelled)
    mean, variance = likelihood.in_measured_unit(spread[0], prediction.variance(modelled), library)
    of_samples = likelihood.in_measured_unit(*spread, library)[1] / prediction.n_samples
    square, sampling = likelihood.squared_error(case.counts, case.per_count, share * mean, library)
    weight = likelihood.error_weight(case.hidden)
    parts = (square - sampling - share**2 * of_samples, share**2 * variance)
    return torch.stack([(part * weight).cpu().double().sum(1) for part in parts]).numpy()


def _std_factor(squares: Sequence[np.ndarray]) -> float:
    """Factor that brings the standard deviation to the size of the error, from both squares of each spot, (2, n) in parts.

    Few spots, or sparse ones, give a vague estimate: the ratio of variances is averaged with 1, by their precisions, as if that were known
    with a standard error of 2, and is at least a half.
    """
    error, claimed = np.concatenate(squares, axis=1) if squares else np.zeros((2, 0))
    error, claimed = error[claimed > 0], claimed[claimed > 0]
    n_spots = len(claimed)
    if n_spots < _MIN_SPOTS:
        return 1.0
    ratio = error.sum() / claimed.sum()
    squared_error = ((error - ratio * claimed) ** 2).sum() * n_spots / (n_spots - 1) / claimed.sum() ** 2
    doubt = squared_error / (squared_error + _PRIOR_ERROR**2)
    return float(np.sqrt(max(ratio + doubt * (1.0 - ratio), _SMALLEST_RATIO)))


def _moments(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Number of spots, and sums over them of predicted means, their squares, and predictive variances, (4, n_genes)."""
    mean = mean.astype(np.float64)
    return np.stack([np.full(mean.shape[1], len(mean)), mean.sum(0), (mean**2).sum(0), variance.sum(0)])


def _signal(moments: Sequence[np.ndarray], n_genes: int) -> np.ndarray:
    """Variance between spots of what is predicted, relative to the predictive variance, (n_genes,); 0 without a spot.

    Computed without the hidden values, so that stratifying by it keeps the conformal guarantee.
    """
    if not moments:
        return np.zeros(n_genes)
    n, *totals = np.sum(moments, axis=0)
    mean, square, variance = (total / n for total in totals)
    return (square - mean**2) / np.maximum(variance, 1e-12)


def _joined(parts: Sequence[Scores]) -> Scores:
    """Scores of all parts."""
    return {
        estimand: tuple(map(np.concatenate, zip(*(part[estimand] for part in parts), strict=True)))
        for estimand in parts[0]
    }
