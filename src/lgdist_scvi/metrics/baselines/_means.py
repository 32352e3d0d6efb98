"""Baselines that average: over a gene, over neighbours in space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from scipy import sparse

from lgdist_scvi._poisson import MOLECULES
from lgdist_scvi.metrics.baselines._baseline import baseline
from lgdist_scvi.metrics.baselines._data import CountData, LogData, best, grid, last, tuned

_ENTRIES = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)  # shrinkage, in observed entries
_SMALLEST = 1e-9  # shrinkage: where nothing is pooled, the gene mean is the answer
_MAX_RINGS = 3
_NEAREST = (1, 12, 24, 48)  # spots in the surroundings
_MAX_REACH = 30  # rings


@baseline()
def gene_mean(data: LogData | CountData) -> np.ndarray:
    """Predict each gene's mean: of its observed values, or its share of all molecules where zeros are data."""
    return (data.mean if isinstance(data, LogData) else data.gene_rate)[data.columns]


@baseline()
def neighbor_mean(
    data: LogData | CountData,
    graph: sparse.csr_matrix,
    seed: int,
    shrinkage: float | None = None,
    n_nearest: int | None = None,
) -> np.ndarray:
    """Predict the mean over a spot's surroundings, shrunk toward the gene mean.

    With a mask, the mean of the observed values in them, (sum + s * gene mean) / (number + s). Where zeros are data, the pooled
    counts of the spot and its surroundings, (sum of counts + s * gene rate) / (sum of libraries + s). Surroundings grow ring by
    ring on the graph until they hold `n_nearest` spots of which anything is observed: inside a hole they reach to its rim.

    Parameters
    ----------
    shrinkage
        Weight s of the gene mean: in observed entries with a mask, else in molecules. ``None``: chosen on an inner
        hold-out.
    n_nearest
        Smallest number of spots in the surroundings; 1 is the ring of neighbours, where any of them is observed. ``None``:
        chosen on the inner hold-out.
    """
    strengths = grid(shrinkage, _ENTRIES if isinstance(data, LogData) else MOLECULES)
    return tuned(data, seed, partial(_pooled, graph=graph), grid(n_nearest, _NEAREST), strengths)


def _pooled(
    data: LogData | CountData, sizes: Sequence[int], strengths: Sequence[float], graph: sparse.csr_matrix
) -> Iterator[tuple[tuple[int, float], np.ndarray]]:
    for size in sizes:
        surroundings = _surroundings(data, graph, size)
        for strength in strengths:
            yield (size, strength), smooth(surroundings, data, strength)


def rings(windows: sparse.csr_matrix, step: sparse.csr_matrix) -> sparse.csr_matrix:
    """Widen windows, 0/1 (n, n_obs), by one ring; `step` is the graph with every spot joined to itself."""
    wider = windows @ step
    wider.data[:] = 1
    return wider


def _surroundings(data: LogData | CountData, graph: sparse.csr_matrix, n_nearest: int) -> sparse.csr_matrix:
    """Graph of each spot's smallest number of rings that hold `n_nearest` observed spots; with the spot itself for counts."""
    observed = data.has_content.astype(np.float32)
    itself = windows = sparse.identity(graph.shape[0], dtype=np.float32, format="csr")
    step, spots, found = graph + itself, np.arange(graph.shape[0]), []
    for ring in range(1, _MAX_REACH + 1):
        wider = rings(windows, step)
        n_observed = wider @ observed - observed[spots]  # without the spot itself
        grows = wider.getnnz(axis=1) > windows.getnnz(axis=1)
        open_ = (n_observed < n_nearest) & grows & (ring < _MAX_REACH)
        found.append((spots[~open_], wider[~open_]))
        spots, windows = spots[open_], wider[open_]
        if not len(spots):
            break
    order = np.argsort(np.concatenate([spots for spots, _ in found]))
    surroundings = sparse.vstack([windows for _, windows in found], format="csr")[order]
    return surroundings if isinstance(data, CountData) else (surroundings - itself).tocsr()


def smooth(graph: sparse.csr_matrix, data: LogData | CountData, shrinkage: float) -> np.ndarray:
    """Pool over a graph and shrink toward the gene mean: values or rates, (n_obs, columns)."""
    shrinkage = max(shrinkage, _SMALLEST)
    if isinstance(data, LogData):
        total = graph @ data.residuals[:, data.columns]
        number = graph @ data.mask[:, data.columns].astype(np.float32)
        return data.mean[data.columns] + total / (number + np.float32(shrinkage))
    total = graph @ data.counts[:, data.columns]
    library = graph @ data.library
    return (total + shrinkage * data.gene_rate[data.columns]) / (library + shrinkage)[:, None]


@baseline(
    without_mask="adaptive_median takes zeros for missing values; write a mask with pp.observed_mask(adata) and pass "
    'mask_layer="observed", or use neighbor_mean where zeros are data'
)
def adaptive_median(
    data: LogData,
    graph: sparse.csr_matrix,
    seed: int,
    n_rings: int | None = None,
) -> np.ndarray:
    """Predict the median over the smallest surroundings of a spot whose median is not zero.

    The pre-completion of the LGDiST and SpaCKLE papers: for every gene a window grows ring by ring around the spot (itself
    included), entries that are not observed counting as zero, until its median is not zero; after `n_rings`, the median of
    the gene's observed values. It calls zeros missing and therefore needs a mask.

    Parameters
    ----------
    n_rings
        Largest window, in steps on the graph; ``None``: 1 to 3, chosen on an inner hold-out.
    """
    if n_rings is None:
        fit, loss = data.split(seed)
        n_rings = best(enumerate(_growing_median(fit, graph, _MAX_RINGS), start=1), loss)
    return last(_growing_median(data, graph, n_rings))


def _growing_median(data: LogData, graph: sparse.csr_matrix, n_rings: int) -> Iterator[np.ndarray]:
    """Yield the prediction, (n_obs, columns), for a largest window of 1, 2, ... rings."""
    values = np.ascontiguousarray(data.values[:, data.columns])
    observed = np.where(data.mask[:, data.columns], values, np.nan)
    without = ~data.mask[:, data.columns].any(axis=0)
    observed[:, without] = data.mean[data.columns[without]]
    fallback = np.nanmedian(observed, axis=0)
    prediction = np.zeros_like(values)
    windows = sparse.identity(graph.shape[0], dtype=np.float32, format="csr")
    step = graph + windows
    for _ in range(n_rings):
        windows = rings(windows, step)
        for spot in np.flatnonzero((prediction == 0).any(axis=1)):
            spots = windows.indices[windows.indptr[spot] : windows.indptr[spot + 1]]
            open_ = prediction[spot] == 0
            prediction[spot, open_] = np.median(values[np.ix_(spots, open_)], axis=0)
        yield np.where(prediction == 0, fallback, prediction)
