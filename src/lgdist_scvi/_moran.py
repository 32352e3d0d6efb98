"""Moran's I of expression, slide by slide."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._squidpy import squidpy

_NEGLIGIBLE = 1e-10  # variance below which a gene is constant: rounding leaves a trace


def morans_i_per_slide(
    values: np.ndarray | sparse.csc_matrix, graph: sparse.csr_matrix, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moran's I of each gene within each slide that has edges.

    Parameters
    ----------
    values
        Expression, (n_obs, n_vars).
    graph
        Neighbourhood graph, (n_obs, n_obs); edges between slides are not looked at.
    samples
        Slide codes, (n_obs,).

    Returns
    -------
    Moran's I, (n_slides, n_vars), NaN for genes that are constant on the slide, and number of spots of each slide, (n_slides,).
    """
    import torch

    sq = squidpy()
    n_threads = torch.get_num_threads()
    found, n_spots = [], []
    for sample in np.unique(samples):
        spots = np.flatnonzero(samples == sample)
        block, edges = values[spots].astype(np.float64), graph[spots][:, spots].astype(np.float64)
        if not edges.nnz:
            continue
        scores, varies = np.full(block.shape[1], np.nan), np.flatnonzero(_variance(block) > _NEGLIGIBLE)
        if len(varies):
            slide = AnnData(
                block[:, varies],
                obs=pd.DataFrame(index=spots.astype(str)),
                var=pd.DataFrame(index=varies.astype(str)),
                obsp={"spatial_connectivities": edges},
            )
            table = sq.gr.spatial_autocorr(slide, mode="moran", corr_method=None, copy=True, show_progress_bar=False)
            scores[varies] = table.loc[slide.var_names, "I"].to_numpy()
        found.append(scores)
        n_spots.append(len(spots))
    torch.set_num_threads(n_threads)  # squidpy's numba sets it for the whole process
    return np.reshape(found, (-1, values.shape[1])), np.array(n_spots, dtype=int)


def _variance(block: np.ndarray | sparse.csc_matrix) -> np.ndarray:
    """Variance of each column, (n_vars,)."""
    if sparse.issparse(block):
        return np.asarray(block.multiply(block).mean(axis=0) - np.square(block.mean(axis=0))).ravel()
    return block.var(axis=0)
