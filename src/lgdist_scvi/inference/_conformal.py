"""Split conformal calibration: how far out an interval must reach to cover as often as it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Scores = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Per estimand, of hidden entries: how far out they lie in their predictive distribution, genes and spots, (n,) each."""

LEVELS = np.concatenate([np.arange(200) / 200, [0.996, 0.997, 0.998, 0.999, 0.9995, 0.9999]])
REPORTED_LEVELS = (0.5, 0.8, 0.9, 0.95)
N_THIRDS = 3
_MAX_STRATA_PER_THIRD = 50
_ENTRIES_PER_STRATUM = 250
_GENES_ALIKE = 30
_UNBOUNDED = 1e6  # standard deviations


def expression_strata(rate: np.ndarray) -> np.ndarray:
    """Third (0, 1, 2) that each gene belongs to by mean expression, (n_genes,)."""
    order = np.argsort(np.argsort(rate, kind="stable"), kind="stable")
    return order * N_THIRDS // len(rate)


def nested_strata(rate: np.ndarray, signal: np.ndarray, gene: np.ndarray) -> np.ndarray:
    """Parts of the thirds by mean expression, as fine as the entries that calibrate allow: 0, 1, ..., (n_genes,).

    Genes of like expression differ in how far out their values lie: each third is cut into those with more and with
    less signal than the genes next to them in expression, and these by expression. Parts hold about equal numbers of
    the entries that calibrate, 250 or more, not of genes: captured values are mostly of a few genes with high
    expression, which differ from each other.

    Parameters
    ----------
    rate, signal
        Mean expression of the genes, and how much predictions of each differ between spots, (n_genes,).
    gene
        Of each entry that calibrates, (n,).
    """
    third, n_entries = expression_strata(rate), np.bincount(gene, minlength=len(rate))
    stratum, n_strata = np.zeros_like(third), 0
    for one in range(N_THIRDS):
        genes = np.flatnonzero(third == one)
        genes = genes[np.argsort(rate[genes], kind="stable")]
        enough = max(_ENTRIES_PER_STRATUM, n_entries[genes].sum() / _MAX_STRATA_PER_THIRD)
        more = _more_than_alike(signal[genes])
        parts = [genes[more], genes[~more]]
        if min(n_entries[part].sum() for part in parts) < enough:
            parts = [genes]
        for part in parts:
            stratum[part] = n_strata + _cut(n_entries[part], enough)
            n_strata = stratum.max(initial=0) + 1
    return stratum


def _more_than_alike(signal: np.ndarray) -> np.ndarray:
    """Whether each gene, in the order of expression, has more signal than half of some 30 of like expression, bool, (n_genes,)."""
    alike = np.array_split(signal, max(1, len(signal) // _GENES_ALIKE))
    return np.concatenate([some > np.median(some) if len(some) else np.zeros(0, dtype=bool) for some in alike])


def _cut(n_entries: np.ndarray, enough: float) -> np.ndarray:
    """Cut a row of genes into parts with enough entries each, (n_genes,); what is left over belongs to the last one."""
    part, current, held = np.zeros(len(n_entries), dtype=int), 0, 0
    for place, n in enumerate(n_entries):
        part[place] = current
        held += n
        if held >= enough:
            current, held = current + 1, 0
    return np.minimum(part, max(current - 1, 0))


def conformal_quantiles(score: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Smallest score that covers a new entry with the probabilities asked for (Vovk et al. 2005).

    From scores of entries that are exchangeable with it, (n,): the ``ceil((n + 1) level)``-th smallest; a bound beyond
    any where there are too few entries for the level.
    """
    # rounding must not turn a whole number into the next one
    levels = np.maximum(np.asarray(levels) - 1e-9 / (len(score) + 1), 0.0)
    return np.quantile(np.append(score, _UNBOUNDED), levels, method="inverted_cdf")


def _thresholds(score: np.ndarray, stratum: np.ndarray, n_strata: int) -> np.ndarray:
    """Conformal quantiles at `LEVELS` in each stratum, (n_strata, n_levels)."""
    return np.stack([conformal_quantiles(score[stratum == s], LEVELS) for s in range(n_strata)])


@dataclass
class Intervals:
    """Calibrated intervals; every attribute is by estimand.

    Attributes
    ----------
    n_entries
        Number of entries that calibrate, in each third of the genes by expression.
    coverage
        Coverage of each half of the spots by intervals that the other half calibrates, at `REPORTED_LEVELS` (rows), over all genes
        and in each third (columns).
    stratum, thresholds
        Stratum of each gene, (n_genes,), and the conformal quantiles at `LEVELS` in each, (n_strata, n_levels).
    """

    n_entries: dict[str, list[int]]
    coverage: dict[str, np.ndarray]
    stratum: dict[str, np.ndarray]
    thresholds: dict[str, np.ndarray]

    def reach(self, estimand: str, level: float) -> np.ndarray:
        """Score up to which each gene's intervals reach at a level, (n_genes,)."""
        return _at_level(self.thresholds[estimand], level)[self.stratum[estimand]]


def fit_intervals(scores: Scores, rate: np.ndarray, signal: np.ndarray) -> Intervals:
    """Calibrate intervals of all levels from scores of entries that training never fitted.

    `rate` and `signal` are as in :func:`nested_strata`.
    """
    third = expression_strata(rate)
    result = Intervals({}, {}, {}, {})
    for estimand, (score, gene, spot) in scores.items():
        stratum = nested_strata(rate, signal, gene)
        of_entry, n_strata = stratum[gene], int(stratum.max()) + 1
        result.n_entries[estimand] = np.bincount(third[gene], minlength=N_THIRDS).tolist()
        result.stratum[estimand] = stratum
        result.thresholds[estimand] = _thresholds(score, of_entry, n_strata)

        inside = np.zeros((len(REPORTED_LEVELS), len(gene)), dtype=bool)
        for half in (spot % 2 == 0, spot % 2 == 1):
            table = _thresholds(score[half], of_entry[half], n_strata)
            limits = np.stack([_at_level(table, level) for level in REPORTED_LEVELS])
            inside[:, ~half] = score[~half] <= limits[:, of_entry[~half]]
        groups = [np.ones(len(gene), dtype=bool), *(third[gene] == t for t in range(N_THIRDS))]
        result.coverage[estimand] = np.stack(
            [inside[:, g].mean(axis=1) if g.any() else np.full(len(inside), np.nan) for g in groups], axis=1
        )
    return result


def _at_level(table: np.ndarray, level: float) -> np.ndarray:
    """Conformal quantile of each stratum at one level, (n_strata,)."""
    return np.array([np.interp(level, LEVELS, row) for row in table])
