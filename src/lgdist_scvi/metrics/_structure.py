"""Spatial structure and correlation of expression, gene by gene."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

_NEGLIGIBLE = 1e-10  # variance below which a gene is constant


def morans_i(values: np.ndarray, graph: sparse.csr_matrix, samples: np.ndarray) -> np.ndarray:
    """Moran's I of each gene within slides, averaged over slides by number of spots.

    Parameters
    ----------
    values
        Expression, (n_obs, n_vars).
    graph
        Neighbourhood graph, (n_obs, n_obs).
    samples
        Slide of each spot, integer codes, (n_obs,).

    Returns
    -------
    (n_vars,), NaN for genes that are constant on every slide.
    """
    import squidpy as sq
    from anndata import AnnData

    total, n_spots = np.zeros((2, values.shape[1]))
    names = [str(gene) for gene in range(values.shape[1])]
    for sample in np.unique(samples):
        spots = np.flatnonzero(samples == sample)
        block, edges = values[spots].astype(np.float64), graph[spots][:, spots].astype(np.float64)
        varies = np.flatnonzero(block.var(axis=0) > _NEGLIGIBLE)
        if not (len(varies) and edges.nnz):
            continue
        slide = AnnData(
            block[:, varies],
            obs=pd.DataFrame(index=[str(spot) for spot in spots]),
            var=pd.DataFrame(index=[names[gene] for gene in varies]),
            obsp={"spatial_connectivities": edges},
        )
        scores = sq.gr.spatial_autocorr(slide, mode="moran", corr_method=None, copy=True, show_progress_bar=False)
        total[varies] += len(spots) * scores.loc[slide.var_names, "I"].to_numpy()
        n_spots[varies] += len(spots)
    return np.divide(total, n_spots, out=np.full(len(total), np.nan), where=n_spots > 0)


def mean_correlation(values: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
    """Mean absolute correlation over spots of each of some genes with all other genes.

    Parameters
    ----------
    values
        Expression, (n_obs, n_vars).
    genes
        Columns of the genes asked for; ``None`` for all.

    Returns
    -------
    (n_genes,); constant genes correlate with nothing.
    """
    genes = np.arange(values.shape[1]) if genes is None else genes
    centred = (values - values.mean(axis=0)).astype(np.float32)
    norm = np.linalg.norm(centred, axis=0)
    centred /= np.where(norm**2 > _NEGLIGIBLE * len(values), norm, np.inf)
    absolute = np.abs(centred[:, genes].T @ centred)
    absolute[np.arange(len(genes)), genes] = 0
    return absolute.sum(axis=1) / max(1, values.shape[1] - 1)
