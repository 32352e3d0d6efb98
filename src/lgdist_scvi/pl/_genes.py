"""Genes that are worth a look."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._registered import Registered, completed_genes
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.metrics._arrays import dense
from lgdist_scvi.metrics._structure import morans_i
from lgdist_scvi.pp._neighbors import build_distances

_DETECTED = (0.1, 0.6)  # share of spots: enough counts to see where, enough zeros to see what was filled
_MOST_CANDIDATES = 256
_MOST_ALIKE = (0.5, 0.8, np.inf)  # correlation with a gene chosen before, less and less strict


def telling_genes(
    adata: AnnData, layer: str, given: Registered, coordinates: np.ndarray, samples: np.ndarray, n_genes: int
) -> list[str]:
    """Choose completed genes with spatial structure and with zeros, each of another pattern.

    From what the model was given, coordinates, (n_obs, 2) or more columns, and slide codes, (n_obs,). Names, largest
    Moran's I of the observed values first; fewer where fewer were completed.
    """
    candidates = completed_genes(adata, layer)
    counts = sparse.csc_matrix(given.counts[:, candidates])
    detected = np.diff(counts.indptr) / max(1, adata.n_obs)
    outside = np.maximum(_DETECTED[0] - detected, detected - _DETECTED[1]).clip(0)
    first = np.argsort(outside, kind="stable")[:_MOST_CANDIDATES]
    candidates, outside = candidates[first], outside[first]
    observed = log1p_cp10k(counts[:, first], given.library)
    graph = build_distances(coordinates, samples, 6)[0] > 0
    moran = np.nan_to_num(morans_i(observed, graph, samples)) if graph.nnz else np.zeros(len(first))

    completed = np.asarray(dense(adata.layers[layer][:, candidates]), dtype=np.float64)
    completed = (completed - completed.mean(axis=0)) / (completed.std(axis=0) + 1e-9)
    chosen: list[int] = []
    for limit in _MOST_ALIKE:
        for gene in np.lexsort((-moran, outside)):
            alike = np.abs(completed[:, chosen].T @ completed[:, gene]) / max(1, adata.n_obs)
            if len(chosen) < n_genes and gene not in chosen and not (alike > limit).any():
                chosen.append(gene)
    return list(adata.var_names[candidates[chosen]])
