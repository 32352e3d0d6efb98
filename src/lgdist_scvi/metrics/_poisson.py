"""Scores of rates by the counts they explain, and the noise no method can explain."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from lgdist_scvi._checks import check_counts
from lgdist_scvi._poisson import moments_given_positive
from lgdist_scvi._units import cp10k_per_count
from lgdist_scvi.metrics._arrays import Matrix, check_alike, dense, scored_entries, take

_SMALLEST_RATE = 1e-12  # a count under rate 0 costs much, not infinitely much
_UNSEEN = 0.1  # molecules of a gene that the data fitted on do not have: they cannot be expected to be impossible
_BLOCK = 1 << 22  # entries handled in one go


def poisson_floor(counts: Matrix, library: np.ndarray, mask: Matrix, rate: Matrix | None = None) -> float:
    """Mean squared error that sampling noise alone leaves on held-out non-zero entries.

    A count is a Poisson draw even if its rate is known. The best prediction of log1p(1e4 * x / L) for an entry with
    expected count m, given x > 0, is its mean, and its error is

        Var[log1p(1e4 * x / L) | x > 0],  x ~ Poisson(m),

    averaged here over the scored entries; L is the library. With `rate`, m = L * rate. Without, m is the count itself,
    which needs no model and comes within a few percent of the floor under fitted rates in well-detected genes, for there this
    variance changes slowly with m; where most counts are 1 it is too large, by a quarter at m = 1 and twofold at 0.5.
    ``completion_scores(...)["mse"] - poisson_floor(...)`` is what a method can still win. Overdispersion beyond Poisson is not
    in the floor.

    Parameters
    ----------
    counts
        Raw counts with the truth, (n_obs, n_vars).
    library
        Library size of each spot with which the truth was normalised, in counts, (n_obs,).
    mask
        True for the entries that are scored, (n_obs, n_vars); those with count 0 are left out.
    rate
        Best available estimate of the expected share of the library, (n_obs, n_vars).

    Returns
    -------
    The floor, in squared units of log1p(CP10K).

    Raises
    ------
    ValueError
        If shapes disagree, values are not counts or rates, or no scored entry has a count.
    """
    check_alike(counts=counts, mask=mask, **({} if rate is None else {"rate": rate}))
    rows, columns = scored_entries(mask)
    library = _library(library, counts)
    values = take(counts, rows, columns, "counts")
    check_counts(values, "counts")
    positive = values > 0
    if not positive.any():
        raise ValueError(f"all {len(values):,} scored entries have count 0; the floor is about non-zero entries")
    rows, columns, expected = rows[positive], columns[positive], values[positive]
    if (library[rows] <= 0).any():
        raise ValueError(f"library is 0 in {len(np.unique(rows[library[rows] <= 0])):,} spots with scored counts")
    if rate is not None:
        expected = library[rows] * take(rate, rows, columns, "rate")
        if (expected <= 0).any():
            raise ValueError(f"rate is not positive in {int((expected <= 0).sum()):,} scored entries with counts")
    return float(np.mean(moments_given_positive(expected, cp10k_per_count(library[rows]))[1]))


def poisson_deviance_explained(
    counts: Matrix,
    rate: Matrix,
    library: np.ndarray | None = None,
    gene_mean: np.ndarray | None = None,
    mask: Matrix | None = None,
) -> float:
    """Poisson deviance explained over the gene-mean model, D2.

    The counts should be independent of those that `rate` and `gene_mean` were fitted on: thin first
    (``pp.hold_out(adata, scheme="thinning")``), fit on `X`, score on ``layers["truth"] - X``. The expected count of an
    entry is library * rate.

    Parameters
    ----------
    counts
        Raw counts to explain, (n_obs, n_vars).
    rate
        Expected share of the library, (n_obs, n_vars); of a prediction in log1p(CP10K), expm1(prediction) / 1e4.
    library
        Library size of each spot in the scored counts, (n_obs,); ``None`` sums `counts`.
    gene_mean
        Share of each gene in the library of the data *fitted on*, (n_vars,): the model that scores 0. ``None`` takes the
        shares in the scored counts, a reference that no fit can know and that therefore makes the score smaller.
    mask
        True for the entries to score; ``None`` for all.

    Returns
    -------
    1 - deviance(rate) / deviance(gene_mean): 1 explains every count, 0 as much as the gene means, negative less.
    Rates are taken as at least 1e-12, gene means as at least a tenth of a molecule in all.

    Raises
    ------
    ValueError
        If shapes disagree, values are not counts or rates, or the gene means leave nothing to explain.
    """
    from sklearn.metrics import mean_poisson_deviance

    gene_mean = _gene_mean(gene_mean, counts, library)
    deviances = np.zeros(2)
    for x, rates, lib, scored in _blocks(counts, rate, library, mask):
        scored = scored & (lib > 0)[:, None]  # a spot without a library has no counts and nothing to explain
        if not scored.any():
            continue
        for place, model in enumerate((rates, np.broadcast_to(gene_mean, x.shape))):
            expected = lib[:, None] * np.maximum(model, _SMALLEST_RATE)
            deviances[place] += scored.sum() * mean_poisson_deviance(x[scored], expected[scored])
    if not deviances[1] > 0:
        raise ValueError("the gene means explain the scored counts completely; there is nothing left to score")
    return float(1 - deviances[0] / deviances[1])


def poisson_variance_explained(
    counts: Matrix,
    rate: Matrix,
    library: np.ndarray | None = None,
    gene_mean: np.ndarray | None = None,
    mask: Matrix | None = None,
) -> float:
    """Share of the variance of the true rates that a prediction explains, sampling noise taken off.

    Most of the deviance of sparse counts is Poisson noise, which nothing explains: D2 of a perfect prediction is far below 1.
    Here that noise is taken off. Where x is a Poisson count of unknown mean, and independent of a prediction m of it,
    (x - m)^2 - x is on average the squared error of m, and about the gene means m_0 the variance there is to explain:

        1 - sum_g w_g sum_i [(x - m)^2 - x] / sum_g w_g sum_i [(x - m_0)^2 - x],  w_g = 1 / sum_i m_0.

    1 is a prediction without an error, 0 as good as the gene means. It is an estimate, the less precise the sparser the counts.
    Variance of counts beyond Poisson counts as variance of rates. Being built from squares, it gives a few
    bright spots much weight, such as those of a gene of rare cells.

    Parameters
    ----------
    counts, rate, library, gene_mean, mask
        As for :func:`poisson_deviance_explained`: counts that `rate` and `gene_mean` were not fitted on.

    Returns
    -------
    The share, 1 at best; with little to explain chance may take it beyond. NaN if the counts vary no more about the gene means
    than Poisson noise does: then there is nothing to explain.

    Raises
    ------
    ValueError
        If shapes disagree, or values are not counts or rates.
    """
    gene_mean = _gene_mean(gene_mean, counts, library)
    errors, total = np.zeros((2, counts.shape[1])), np.zeros(counts.shape[1])
    for x, rates, lib, scored in _blocks(counts, rate, library, mask):
        means = lib[:, None] * gene_mean
        for place, expected in enumerate((lib[:, None] * rates, means)):
            errors[place] += np.sum((x - expected) ** 2 - x, axis=0, where=scored)
        total += np.sum(means, axis=0, where=scored)
    error, variance = np.divide(errors, total, out=np.zeros_like(errors), where=total > 0).sum(axis=1)
    return float(1 - error / variance) if variance > 0 else float("nan")


def poisson_log_likelihood(
    counts: Matrix, rate: Matrix, library: np.ndarray | None = None, mask: Matrix | None = None
) -> float:
    """Mean Poisson log-likelihood per entry of counts under expected rates.

    Parameters
    ----------
    counts, rate, library, mask
        As for :func:`poisson_deviance_explained`; rates are taken as at least 1e-12.

    Returns
    -------
    Mean log P(count | Poisson(library * rate)), in nats.

    Raises
    ------
    ValueError
        If shapes disagree, or values are not counts or rates.
    """
    from scipy.stats import poisson

    total, n_scored = 0.0, 0
    for x, rates, lib, scored in _blocks(counts, rate, library, mask):
        likelihood = poisson.logpmf(x, lib[:, None] * np.maximum(rates, _SMALLEST_RATE))
        total += float(np.sum(likelihood, where=scored))
        n_scored += int(np.sum(scored))
    return total / n_scored


def _gene_mean(gene_mean: np.ndarray | None, counts: Matrix, library: np.ndarray | None) -> np.ndarray:
    """Shares of the genes in the library, of the scored counts if not given; at least a tenth of a molecule in all."""
    n_molecules = max(1.0, float(counts.sum(axis=None) if library is None else np.sum(library)))
    if gene_mean is None:
        gene_mean = np.asarray(counts.sum(axis=0)).ravel() / n_molecules
    gene_mean = np.asarray(gene_mean, dtype=np.float64)
    if gene_mean.shape != (counts.shape[1],):
        raise ValueError(
            f"gene_mean has shape {gene_mean.shape}; expected one share for each of {counts.shape[1]:,} genes"
        )
    return np.maximum(gene_mean, _UNSEEN / n_molecules)


def _library(library: np.ndarray, counts: Matrix) -> np.ndarray:
    library = np.asarray(library, dtype=np.float64)
    if library.shape != (counts.shape[0],):
        raise ValueError(f"library has shape {library.shape}; expected one value for each of {counts.shape[0]:,} spots")
    if n_bad := int((~np.isfinite(library) | (library < 0)).sum()):
        raise ValueError(f"library is NaN, infinite or negative in {n_bad:,} of {len(library):,} spots")
    return library


def _blocks(
    counts: Matrix, rate: Matrix, library: np.ndarray | None, mask: Matrix | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield counts, rates, library and the entries to score, for blocks of spots."""
    check_alike(counts=counts, rate=rate, **({} if mask is None else {"mask": mask}))
    if mask is None:
        mask = np.broadcast_to(True, counts.shape)
    elif not len(scored_entries(mask)[0]):
        return
    counts = counts.tocsr() if sparse.issparse(counts) else dense(counts)
    check_counts(counts, "counts")
    library = _library(np.asarray(counts.sum(axis=1)).ravel() if library is None else library, counts)
    rate, mask = dense(rate), dense(mask)
    step = max(1, _BLOCK // max(1, counts.shape[1]))
    for start in range(0, counts.shape[0], step):
        rows = slice(start, start + step)
        x, rates, scored = dense(counts[rows]).astype(np.float64), rate[rows].astype(np.float64), mask[rows]
        if n_bad := int((~(rates >= 0) & scored).sum()) + int(np.isposinf(rates[scored]).sum()):
            raise ValueError(
                f"{n_bad:,} scored entries of rate are NaN, negative or infinite; a rate is the expected share of a "
                "spot's library (expm1(prediction) / 1e4 for a prediction in log1p(CP10K))"
            )
        empty = (library[rows] == 0) & ((x > 0) & scored).any(axis=1)
        if empty.any():
            raise ValueError(f"library is 0 in {int(empty.sum()):,} spots with counts; pass their library sizes")
        yield x, rates, library[rows], scored
