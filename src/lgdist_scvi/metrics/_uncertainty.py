"""Scores of intervals and of samples."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lgdist_scvi.metrics._arrays import Matrix, check_alike, dense, scored_entries, take


def interval_coverage(
    truth: Matrix, lower: Matrix, upper: Matrix, mask: Matrix, by: np.ndarray | pd.Series | None = None
) -> pd.DataFrame:
    """Share of held-out values that lie inside their prediction intervals.

    Parameters
    ----------
    truth
        Measured values, log1p(CP10K), (n_obs, n_vars).
    lower, upper
        Bounds of the intervals, the same scale and shape; both belong to the interval.
    mask
        True for the entries to score, (n_obs, n_vars).
    by
        Labels that split the entries into strata: one per spot (n_obs,), per gene (n_vars,) or per entry
        (n_obs, n_vars). With as many spots as genes, pass one per entry.

    Returns
    -------
    One row for all entries (``"all"``), then one for each stratum in sorted order, with `coverage` (between 0 and 1),
    `width` (mean of upper - lower, log1p(CP10K)) and `n` (scored entries).

    Raises
    ------
    ValueError
        If shapes or labels disagree, the mask is not bool or empty, a scored value is NaN or infinite, or a lower bound
        exceeds its upper.
    """
    check_alike(truth=truth, lower=lower, upper=upper, mask=mask)
    rows, columns = scored_entries(mask)
    true = take(truth, rows, columns, "truth")
    low, high = take(lower, rows, columns, "lower"), take(upper, rows, columns, "upper")
    if n_crossed := int((low > high).sum()):
        raise ValueError(f"lower exceeds upper in {n_crossed:,} of {len(true):,} scored entries")
    entries = pd.DataFrame({"coverage": (low <= true) & (true <= high), "width": high - low})
    groups = [("all", entries)]
    if by is not None:
        groups += entries.groupby(_strata(by, truth.shape, rows, columns), sort=True, observed=True)
    summaries = [{"stratum": label, **group.mean(), "n": len(group)} for label, group in groups]
    return pd.DataFrame(summaries).set_index("stratum")


def _strata(by: np.ndarray | pd.Series, shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    labels = np.asarray(by)
    if labels.shape == shape:
        return labels[rows, columns]
    if labels.ndim == 1 and shape[0] != shape[1]:
        if len(labels) == shape[0]:
            return labels[rows]
        if len(labels) == shape[1]:
            return labels[columns]
    raise ValueError(
        f"by has shape {labels.shape}; expected one label per spot ({shape[0]},), per gene ({shape[1]},) or per entry "
        f"{shape}" + (" (per entry only, as there are as many spots as genes)" if shape[0] == shape[1] else "")
    )


def crps(samples: np.ndarray, truth: Matrix, mask: Matrix) -> float:
    """Continuous ranked probability score of samples, averaged over held-out entries.

    E|X - y| - E|X - X'| / 2 with X, X' two different samples of the entry ("fair" version: its expectation does not depend
    on the number of samples; Ferro, QJRMS 2014). Proper: smallest for samples of the true distribution.

    Parameters
    ----------
    samples
        Samples of every entry, log1p(CP10K), (n_samples, n_obs, n_vars), at least 2. They must hold measurement noise as the truth
        does: those of ``LGDiST.posterior_predictive_sample`` do, those of ``get_completed_expression`` do not.
    truth
        Measured values, the same scale, (n_obs, n_vars).
    mask
        True for the entries to score, (n_obs, n_vars).

    Returns
    -------
    Mean score in units of log1p(CP10K), smaller is better; the absolute error where all samples agree.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than 2 samples, the mask is not bool or empty, or a scored value is NaN.
    """
    drawn, true, _ = _scored_samples(samples, truth, mask)
    n_samples = len(drawn)
    drawn.sort(axis=0)
    # of the sorted samples, the k-th enters the sum of all pairwise differences 2k - n - 1 times
    weights = 2 * np.arange(1, n_samples + 1) - n_samples - 1
    pairs = weights @ drawn / (n_samples * (n_samples - 1))
    return float(np.mean(np.abs(drawn - true).mean(axis=0) - pairs))


def energy_score(samples: np.ndarray, truth: Matrix, mask: Matrix) -> float:
    """Energy score of joint samples, averaged over spots.

    The multivariate form of :func:`crps`: for each spot E||X - y|| - E||X - X'|| / 2 over the vector of its held-out
    genes, X and X' two different samples (Gneiting & Raftery, JASA 2007, eq. 22, in the fair version). Unlike `crps` it
    also rewards the right correlation between genes.

    Parameters
    ----------
    samples, truth, mask
        As for :func:`crps`.

    Returns
    -------
    Mean score over the spots with scored entries, smaller is better.

    Raises
    ------
    ValueError
        As :func:`crps`.
    """
    drawn, true, rows = _scored_samples(samples, truth, mask)
    n_samples = len(drawn)
    spots = np.unique(rows, return_inverse=True)[1]

    def mean_norm(difference: np.ndarray) -> float:
        return float(np.sqrt(np.bincount(spots, difference**2)).mean())

    distance = np.mean([mean_norm(sample - true) for sample in drawn])
    pairs = [mean_norm(drawn[i] - drawn[j]) for i in range(n_samples) for j in range(i)]
    return float(distance - np.mean(pairs) / 2)


def _scored_samples(samples: np.ndarray, truth: Matrix, mask: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples (n_samples, entries), truth (entries,) and rows of the entries to score."""
    samples = np.asarray(samples)
    if samples.ndim != 3 or samples.shape[1:] != tuple(truth.shape):
        raise ValueError(f"samples has shape {samples.shape}; expected (n_samples, {truth.shape[0]}, {truth.shape[1]})")
    if len(samples) < 2:
        raise ValueError(
            "samples holds a single sample of every entry and the score needs at least 2; draw more with "
            "model.posterior_predictive_sample(n_samples=...)"
        )
    check_alike(truth=truth, mask=mask)
    rows, columns = scored_entries(dense(mask))
    drawn = np.stack([take(sample, rows, columns, "samples") for sample in samples])
    return drawn, take(truth, rows, columns, "truth"), rows
