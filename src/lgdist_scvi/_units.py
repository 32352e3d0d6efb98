"""The one scale of expression in this package: log1p(CP10K)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from torch import Tensor

COUNTS_PER = 1e4  # the "10K" of CP10K
_BLOCK = 1 << 22  # entries converted in one go: float64 temporaries stay below 40 MB

Values = TypeVar("Values", float, np.ndarray, "Tensor")


def cp10k_per_count(library: Values) -> Values:
    """CP10K that one count stands for, of the shape and kind of the library sizes (counts)."""
    return COUNTS_PER / library


def counts_per_cp10k(library: Values) -> Values:
    """Counts that one CP10K stands for, of the shape and kind of the library sizes (counts)."""
    return library / COUNTS_PER


def to_cp10k(rate: Values) -> Values:
    """CP10K of rates: expected shares of the library, arrays or tensors."""
    return rate * COUNTS_PER


def from_cp10k(value: Values) -> Values:
    """Rates, expected shares of the library, of CP10K; times the library counts, of CP10K times the library."""
    return value / COUNTS_PER


def to_log1p(counts: Values, library: Values) -> Values:
    """log1p(CP10K) of arrays or tensors in their own precision; library sizes in counts, > 0, broadcast against the counts."""
    value = to_cp10k(counts / library)
    return value.log1p() if hasattr(value, "log1p") else np.log1p(value)  # a tensor, which keeps its gradient; an array


def library_size(counts: np.ndarray | sparse.spmatrix, mask: np.ndarray | None = None) -> np.ndarray:
    """Sum the raw counts of every spot, float64, (n_obs,), where a mask, (n_obs, n_vars), is True."""
    if not sparse.issparse(counts):
        return np.asarray(counts).sum(axis=1, dtype=np.float64, where=True if mask is None else mask)
    csr = counts.tocsr()
    rows = np.repeat(np.arange(len(csr.indptr) - 1), np.diff(csr.indptr))
    values = csr.data if mask is None else csr.data * mask[rows, csr.indices]
    return np.bincount(rows, weights=values, minlength=counts.shape[0])


def known_counts(counts: np.ndarray | sparse.csr_matrix, known: np.ndarray | None) -> np.ndarray | sparse.csr_matrix:
    """Counts with 0 where a mask says that they are unknown."""
    if known is None:
        return counts
    return counts.multiply(known).tocsr() if sparse.issparse(counts) else np.where(known, counts, 0)


def log1p_cp10k(counts: np.ndarray | sparse.spmatrix, library: np.ndarray) -> np.ndarray:
    """Normalise raw counts to log1p(counts / library * 1e4), float32, dense, (n_obs, n_vars).

    Spots with a library of 0 come out as 0. Computed in float64 and rounded once, so that dense and sparse counts,
    whole matrices and blocks of rows give the same bits.

    Raises ValueError if `library` does not have one value per spot.
    """
    n_obs, n_vars = counts.shape
    library = np.asarray(library, dtype=np.float64)
    if library.shape != (n_obs,):
        raise ValueError(f"library has shape {library.shape}; expected one value for each of the {n_obs:,} spots")
    # an infinite denominator sends the counts of an empty spot to 0
    denominator = np.where(library > 0, library, np.inf)
    out = np.zeros((n_obs, n_vars), dtype=np.float32)
    step = max(1, _BLOCK // max(1, n_vars))
    csr = counts.tocsr() if sparse.issparse(counts) else None
    for start in range(0, n_obs, step):
        rows = slice(start, min(start + step, n_obs))
        if csr is None:
            values = np.asarray(counts[rows], dtype=np.float64, order="C")
            out[rows] = to_log1p(values, denominator[rows, None])
        else:
            stored = slice(csr.indptr[rows.start], csr.indptr[rows.stop])
            spots = np.repeat(np.arange(rows.start, rows.stop), np.diff(csr.indptr[rows.start : rows.stop + 1]))
            values = csr.data[stored].astype(np.float64)
            out[spots, csr.indices[stored]] = to_log1p(values, denominator[spots])
    return out
