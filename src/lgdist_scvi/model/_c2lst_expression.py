"""Expression that patches are made for: counts, or profiles of expected rates, of all genes or some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_counts, get_library, in_memory
from lgdist_scvi._checks import require_key
from lgdist_scvi._units import library_size
from lgdist_scvi.module.c2lst import ExpressionScores


def read_counts(
    adata: AnnData, genes: np.ndarray, setup: Mapping[str, Any], scores: ExpressionScores | None = None
) -> tuple:
    """Counts of registered genes, (n_obs, n_genes), 0 where a gene is not there, library sizes, (n_obs,), and which genes are there.

    Without a column of library sizes they are the sums of the genes that are there, over their part of the library in the training.
    """
    counts, columns = get_counts(adata, setup["layer"]), adata.var_names.get_indexer(genes)
    there = columns >= 0
    taken = counts[:, columns[there]]
    found = np.zeros((adata.n_obs, len(genes)), dtype=np.float32)
    found[:, there] = taken.toarray() if sparse.issparse(taken) else taken
    key = setup["size_factor_key"]
    if key is not None and (scores is None or key in adata.obs):
        return found, get_library(adata, key), there
    share = 1.0 if scores is None or there.all() else float(scores.gene_rate.cpu().numpy()[there].sum())
    return found, library_size(found) / share, there


def profiles(
    expression: Any, genes: np.ndarray, setup: Mapping[str, Any], scores: ExpressionScores
) -> tuple[np.ndarray, np.ndarray]:
    """log1p(CP10K) of expected rates, float32 (n, n_genes), and which of them are known, bool (n, n_genes).

    Raises
    ------
    TypeError
        If `expression` is of another kind.
    KeyError
        If none of the genes is there.
    ValueError
        If values are not those of expected rates.
    """
    if isinstance(expression, AnnData):
        return _of_anndata(expression, genes, setup, scores)
    if isinstance(expression, pd.DataFrame):
        _require_gene(expression.columns.isin(genes).any(), "the columns of expression")
        values = expression.reindex(columns=genes).to_numpy(dtype=np.float32)
    elif isinstance(expression, np.ndarray):
        values = np.array(expression, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != len(genes):
            raise ValueError(
                f"expression has shape {values.shape}; an array holds log1p(CP10K) of the {len(genes):,} registered genes, (n, n_genes): "
                "pass a DataFrame to name fewer or others"
            )
    else:
        raise TypeError(
            f"expression must be an AnnData, or a DataFrame or array of log1p(CP10K), got {type(expression).__name__}"
        )
    known = ~np.isnan(values)
    if (bad := ~np.isfinite(values[known]) | (values[known] < 0)).any():
        raise ValueError(
            f"{int(bad.sum()):,} values of expression are negative or infinite; log1p(CP10K) of expected rates is asked for"
        )
    return np.where(known, values, 0), known


def _of_anndata(
    adata: AnnData, genes: np.ndarray, setup: Mapping[str, Any], scores: ExpressionScores
) -> tuple[np.ndarray, np.ndarray]:
    _require_gene(adata.var_names.isin(genes).any(), "adata.var_names")
    if (layer := setup["expression_layer"]) is not None:
        require_key(adata.layers, layer, "adata.layers", 'LGDiST.complete(observed="model") writes expected rates')
        values = in_memory(adata.layers[layer])
        values = values.toarray() if sparse.issparse(values) else values
        return profiles(pd.DataFrame(values, columns=adata.var_names), genes, setup, scores)
    counts, library, there = read_counts(adata, genes, setup, scores)
    return expected_values(scores, counts, library), np.broadcast_to(there, counts.shape)


def expected_values(scores: ExpressionScores, counts: np.ndarray, library: np.ndarray) -> np.ndarray:
    """log1p(CP10K) of rates expected of counts, float32 (n, n_genes)."""
    device = scores.centre.device
    library = torch.from_numpy(np.asarray(library, dtype=np.float32)).to(device)
    return scores.expected(torch.from_numpy(counts).to(device), library).cpu().numpy()


def _require_gene(found: bool, where: str) -> None:
    if not found:
        raise KeyError(f"none of the registered genes is in {where}; name genes as in the training data")


def conditions(scores: ExpressionScores, values: np.ndarray, known: np.ndarray) -> torch.Tensor:
    """Condition of each profile, (n, n_condition)."""
    patterns, which = np.unique(known, axis=0, return_inverse=True)
    device = scores.centre.device
    result = torch.empty(len(values), scores.n_condition, device=device)
    for number, pattern in enumerate(patterns):
        rows = np.flatnonzero(which.ravel() == number)
        result[rows] = scores(torch.from_numpy(values[rows]).to(device), torch.from_numpy(pattern).to(device))
    return result
