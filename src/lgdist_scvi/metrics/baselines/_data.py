"""What baselines read of a slide, and the inner hold-outs that choose their hyper-parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_counts, get_genes, get_mask
from lgdist_scvi._checks import require_key
from lgdist_scvi._registered import library_of
from lgdist_scvi._units import known_counts, log1p_cp10k, to_cp10k

INNER_FRACTION = 0.1  # part of the data set aside to choose hyper-parameters
_MANY_SPOTS = 0.05  # share of the spots without anything observed from which on whole spots are the question
_MIN_GENE_COUNT = 0.1  # a gene never seen is still not impossible


@dataclass(frozen=True)
class LogData:
    """Observed values of a slide, the rest unknown.

    `values` are log1p(CP10K), float32, 0 where not observed, `mask` is True where observed, (n_obs, n_vars) each;
    `columns` are indices of the genes to predict.
    """

    values: np.ndarray
    mask: np.ndarray
    columns: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean observed value of each gene, float32, (n_vars,); of all genes for one without."""
        n_observed = self.mask.sum(axis=0)
        mean = self.values.sum(axis=0, dtype=np.float64) / np.maximum(n_observed, 1)
        overall = self.values.sum(dtype=np.float64) / max(1, n_observed.sum())
        return np.where(n_observed > 0, mean, overall).astype(np.float32)

    @cached_property
    def residuals(self) -> np.ndarray:
        """Observed values minus the gene mean, float32, (n_obs, n_vars); 0 where not observed."""
        return np.where(self.mask, self.values - self.mean, np.float32(0))

    @cached_property
    def has_content(self) -> np.ndarray:
        """Whether anything is observed of a spot, (n_obs,)."""
        return self.mask.any(axis=1)

    def split(self, seed: int) -> tuple[LogData, Callable[[np.ndarray], float]]:
        """Hide a part of what is observed: entries of the genes to predict, or whole spots where whole spots are missing.

        Gives the data without them, and the mean squared error on them as a function of a prediction, (n_obs, columns).
        """
        rng = np.random.default_rng(seed)
        mask = self.mask.copy()
        if self.has_content.mean() < 1 - _MANY_SPOTS:
            spots = np.flatnonzero(mask[:, self.columns].any(axis=1))
            hidden = rng.choice(spots, max(1, round(INNER_FRACTION * len(spots))), replace=False)
            mask[hidden] = False
        else:
            candidates = np.flatnonzero(mask[:, self.columns])
            hidden = rng.choice(candidates, max(1, round(INNER_FRACTION * len(candidates))), replace=False)
            rows, places = np.divmod(hidden, len(self.columns))
            mask[rows, self.columns[places]] = False
        values = np.where(mask, self.values, np.float32(0))
        rows, places = np.nonzero((self.mask & ~mask)[:, self.columns])
        truth = self.values[rows, self.columns[places]]

        def error(prediction: np.ndarray) -> float:
            return float(np.mean((prediction[rows, places] - truth) ** 2, dtype=np.float64))

        return LogData(values, mask, self.columns), error

    def answer(self, prediction: np.ndarray) -> np.ndarray:
        """Predictions of the genes to predict, spread over all genes."""
        return _spread(prediction, self.columns, self.mask.shape)


@dataclass(frozen=True)
class CountData:
    """Counts of a slide, zeros included, float32, (n_obs, n_vars).

    Library sizes are in counts, float64, (n_obs,); `columns` are indices of the genes to predict.
    """

    counts: np.ndarray
    library: np.ndarray
    columns: np.ndarray

    @cached_property
    def has_content(self) -> np.ndarray:
        """Whether anything was counted in a spot, (n_obs,)."""
        return self.library > 0

    @cached_property
    def gene_rate(self) -> np.ndarray:
        """Share of each gene in the library, float64, (n_vars,)."""
        return np.maximum(self.counts.sum(axis=0, dtype=np.float64), _MIN_GENE_COUNT) / max(1.0, self.library.sum())

    def split(self, seed: int) -> tuple[CountData, Callable[[np.ndarray], float]]:
        """Set molecules aside (binomial thinning).

        Gives the data without them, and the Poisson loss per molecule on them as a function of rates, (n_obs, columns).
        """
        rng = np.random.default_rng(seed)
        rows, genes = np.nonzero(self.counts)
        n_hidden = rng.binomial(self.counts[rows, genes].astype(np.int64), INNER_FRACTION).astype(np.float32)
        counts = self.counts.copy()
        counts[rows, genes] -= n_hidden
        fit = CountData(counts, (1 - INNER_FRACTION) * self.library, self.columns)

        places = np.full(self.counts.shape[1], -1)
        places[self.columns] = np.arange(len(self.columns))
        scored = (n_hidden > 0) & (places[genes] >= 0)
        rows, places, n_hidden = rows[scored], places[genes[scored]], n_hidden[scored]
        library = INNER_FRACTION * self.library
        n_molecules = max(1.0, float(n_hidden.sum(dtype=np.float64)))

        def loss(rate: np.ndarray) -> float:
            expected = library @ rate.sum(axis=1, dtype=np.float64)
            with np.errstate(divide="ignore"):
                seen = n_hidden @ np.log(rate[rows, places].astype(np.float64))
            return float(expected - seen) / n_molecules

        return fit, loss

    def answer(self, rate: np.ndarray) -> np.ndarray:
        """log1p(CP10K) of the rates of the genes to predict, spread over all genes."""
        return _spread(np.log1p(to_cp10k(rate)), self.columns, self.counts.shape)


def _spread(prediction: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    answer = np.full(shape, np.nan, dtype=np.float32)
    answer[:, columns] = prediction
    return answer


def read(
    adata: AnnData,
    layer: str | None,
    mask_layer: str | None,
    size_factor_key: str | None,
    genes: str | Sequence[str] | None,
) -> LogData | CountData:
    """Read a slide as `LogData` where a mask is given, else as `CountData`."""
    counts = get_counts(adata, layer)
    columns = np.flatnonzero(get_genes(adata, genes))
    mask = None if mask_layer is None else get_mask(adata, mask_layer)
    if mask is not None:
        if n_empty := int((~mask[:, columns].any(axis=0)).sum()):
            raise ValueError(
                f"{n_empty:,} of {len(columns):,} genes to predict have no observed entry in "
                f"adata.layers[{mask_layer!r}]; drop them or name the others (genes=...)"
            )
        counts = known_counts(counts, mask)
    library = library_of(adata, counts, size_factor_key)
    if mask is not None:
        return LogData(log1p_cp10k(counts, library), mask, columns)
    dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    return CountData(dense.astype(np.float32), library, columns)


def read_graph(adata: AnnData, graph_key: str) -> sparse.csr_matrix:
    """Read the neighbourhood graph, float32 0/1, without self loops, (n_obs, n_obs)."""
    require_key(adata.obsp, graph_key, "adata.obsp", "build the graph with pp.spatial_neighbors(adata)")
    graph = sparse.csr_matrix(adata.obsp[graph_key], dtype=np.float32, copy=True)
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.data[:] = 1
    return graph


def best(candidates: Iterable[tuple[Any, np.ndarray]], loss: Callable[[np.ndarray], float]) -> Any:
    """Return the hyper-parameters whose prediction has the smallest loss."""
    scored = [(loss(prediction), parameters) for parameters, prediction in candidates]
    return min(scored, key=lambda pair: pair[0])[1]


def tuned(
    data: Any, seed: int, candidates: Callable[..., Iterable[tuple[tuple, np.ndarray]]], *grids: Sequence[Any]
) -> np.ndarray:
    """Prediction with the hyper-parameters, one of each grid, that do best on an inner hold-out.

    `candidates` takes data and grids, and yields hyper-parameters and the prediction with them.
    """
    chosen = tuple(values[0] for values in grids)
    if any(len(values) > 1 for values in grids):
        fit, loss = data.split(seed)
        chosen = best(candidates(fit, *grids), loss)
    ((_, prediction),) = candidates(data, *((value,) for value in chosen))
    return prediction


def last(items: Iterable[Any]) -> Any:
    """Return the last of what an iterator yields, keeping no other."""
    return deque(items, maxlen=1).pop()


def grid(value: Any, default: Sequence[Any]) -> Sequence[Any]:
    """Return the values to try of a hyper-parameter: the caller's, or the default ones."""
    return default if value is None else (value,)
