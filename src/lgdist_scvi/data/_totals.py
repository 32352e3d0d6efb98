"""Sums over all entries of counts and mask, from one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from lgdist_scvi._checks import bad_counts
from lgdist_scvi._units import library_size


@dataclass
class Totals:
    """Sums over all entries.

    Attributes
    ----------
    counted, observed
        Counts of each spot, and those of them that a mask does not hide, float64, (n_obs,).
    n_observed
        Entries of each spot that are observed, int64, (n_obs,).
    n_positive, n_observed_positive
        Number of entries with counts, and of those that are observed.
    all_observed
        Whether every entry is observed.
    """

    counted: np.ndarray
    observed: np.ndarray
    n_observed: np.ndarray
    n_positive: int
    n_observed_positive: int
    all_observed: bool


def totals_of(counts: Any, mask: Any, blocks: Iterable[np.ndarray]) -> tuple[Totals, Counter[str]]:
    """Sums over counts and mask, (n_obs, n_genes), ``None`` if everything is observed, and the :func:`bad_counts`.

    `blocks` are rows of all spots, some at a time.
    """
    n_obs, n_genes = counts.shape
    counted, observed = np.zeros((2, n_obs))
    n_observed, n_positive, n_observed_positive = np.full(n_obs, n_genes), 0, 0
    n_bad: Counter[str] = Counter()
    for spots in blocks:
        rows = counts[spots]
        n_bad += bad_counts(rows, "counts")
        counted[spots] = library_size(rows)
        n_positive += rows.nnz if sparse.issparse(rows) else int(np.count_nonzero(rows))
        if mask is not None:
            known = mask[spots]
            known = (known.toarray() if sparse.issparse(known) else known).astype(bool, copy=False)
            observed[spots], n_observed[spots] = library_size(rows, known), known.sum(axis=1)
            stored = sparse.csr_matrix(rows)
            n_observed_positive += int(
                known[np.repeat(np.arange(len(spots)), np.diff(stored.indptr)), stored.indices].sum()
            )
    if mask is None:
        observed, n_observed_positive = counted, n_positive
    totals = Totals(counted, observed, n_observed, n_positive, n_observed_positive, bool((n_observed == n_genes).all()))
    return totals, n_bad
