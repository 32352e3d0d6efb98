"""Gene statistics of what may be looked at, and the entries that training may not look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.utils.extmath import randomized_svd

from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.data._dataset import NeighborhoodDataset

_N_PATTERNS = 1021  # prime, so that patterns do not line up with the rows of an array
_STREAM = 5
_ONE_SPOT_IN = 25  # is set aside whole
_SAMPLE_SPOTS = 4096
_SAMPLE_ENTRIES = 16_000_000  # held dense for principal axes and experts


@dataclass
class GeneStatistics:
    """What the networks start from.

    Attributes
    ----------
    rate
        Mean share of each gene in the library, of what is seen of it where zeros are missing, float32, (n_genes,).
    value_mean, value_scale
        Mean and standard deviation of the known values of each gene in log1p(CP10K), float32, (n_genes,).
    typical_library
        Median library size in counts.
    loadings
        Leading principal axes of the standardised values, each scaled by the standard deviation of its scores, float32,
        (n_genes, n_components).
    signal
        Share of each score's variance that is not noise, float32, (n_components,).
    some_spots
        Counts, 1 where they may be looked at, (n, n_genes) each, and library sizes, (n, 1), of some spots, dense
        float32.
    """

    rate: np.ndarray
    value_mean: np.ndarray
    value_scale: np.ndarray
    typical_library: float
    loadings: np.ndarray
    signal: np.ndarray
    some_spots: tuple[np.ndarray, np.ndarray, np.ndarray]


def set_aside_patterns(n_genes: int, fraction: float, seed: int) -> np.ndarray:
    """Draw which entries are set aside, (n_patterns, n_genes), bool: a part of each spot, and whole spots.

    Spot i uses row i modulo the number of rows: as good as independent draws, at a thousandth of the memory. One row in 25,
    never the first, sets its spots aside whole.
    """
    # a stream of its own: a mask that the user drew with the same seed must not coincide with the patterns
    rng = np.random.default_rng([seed, _STREAM])
    patterns = rng.random((_N_PATTERNS, n_genes)) < fraction
    first = np.arange(0, _N_PATTERNS - _ONE_SPOT_IN, _ONE_SPOT_IN)
    patterns[first + rng.integers(1, _ONE_SPOT_IN, len(first))] = True
    return patterns


def gene_statistics(
    dataset: NeighborhoodDataset,
    set_aside: np.ndarray,
    counted_among: Callable[[np.ndarray], np.ndarray],
    compositional: bool,
    n_components: int,
) -> GeneStatistics:
    """Summarise the observed entries that are not held out, of what training looks at of a data set.

    `set_aside` are the :func:`set_aside_patterns`. `counted_among` gives the entries in whose libraries the counts of
    known ones are a share; see :class:`~lgdist_scvi.module.likelihood.Likelihood`. With `compositional` the genes make
    up the library, so that rates sum to 1.
    """
    dataset, n_genes = dataset.for_training, set_aside.shape[1]
    counts_sum, library_sum, n_known, value_sum, square_sum = np.zeros((5, n_genes))
    for spots in dataset.blocks():
        counts, known, library = dataset.rows(spots)
        known *= ~set_aside[spots % len(set_aside)]
        values = log1p_cp10k(counts, library[:, 0])
        counts_sum += (counts * known).sum(axis=0, dtype=np.float64)
        library_sum += library[:, 0].astype(np.float64) @ counted_among(known)
        n_known += known.sum(axis=0, dtype=np.float64)
        value_sum += (values * known).sum(axis=0, dtype=np.float64)
        square_sum += (values**2 * known).sum(axis=0, dtype=np.float64)
    # genes without known entries get the overall mean; genes never counted get a pseudo-count, so that log(rate) is finite
    mean = np.where(n_known > 0, value_sum / np.maximum(n_known, 1.0), value_sum.sum() / max(n_known.sum(), 1.0))
    rate = (counts_sum + 0.1) / np.maximum(np.where(library_sum > 0, library_sum, dataset.library.sum()), 1.0)
    n_known = np.maximum(n_known, 1.0)
    if compositional:
        rate /= rate.sum()
    scale = np.sqrt(np.maximum(square_sum / n_known - mean**2, 1e-2))
    typical_library = float(np.median(dataset.library[dataset.has_content])) if dataset.has_content.any() else 1.0

    spots = np.flatnonzero(dataset.has_content)
    n_dense = max(min(_SAMPLE_ENTRIES // n_genes, _SAMPLE_SPOTS), 2)
    spots = np.sort(np.random.default_rng(0).permutation(spots)[:n_dense])
    counts, known, library = dataset.rows(spots)
    known *= ~set_aside[spots % len(set_aside)]
    values = (log1p_cp10k(counts, library[:, 0]) - mean.astype(np.float32)) / scale.astype(np.float32) * known
    loadings, signal = _loadings(values, n_components)
    return GeneStatistics(
        rate=rate.astype(np.float32),
        value_mean=mean.astype(np.float32),
        value_scale=scale.astype(np.float32),
        typical_library=typical_library,
        loadings=loadings,
        signal=signal,
        some_spots=(counts, known, library),
    )


def _loadings(values: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes of standardised values; what is not known counts as the gene's mean."""
    rank = min(n_components + 1, *values.shape)
    _, singular, axes = randomized_svd(values, rank, n_iter=4, random_state=0)
    n_kept = min(n_components, rank)
    loadings = np.zeros((values.shape[1], n_components), dtype=np.float32)
    loadings[:, :n_kept] = (axes[:n_kept] * singular[:n_kept, None] / np.sqrt(len(values))).T
    # what even the last component explains is taken for noise
    signal = np.zeros(n_components, dtype=np.float32)
    signal[:n_kept] = 1.0 - (singular[-1] / np.maximum(singular[:n_kept], 1e-12)) ** 2
    return loadings, signal
