"""Honest protocols: what is hidden, what a method is given, and how its answer is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
from scipy import sparse

from lgdist_scvi import metrics, pp

PROTOCOLS = ("entry", "spot", "block", "thinning", "shallow")


@dataclass
class Task:
    """What a method is given, and how its answer is scored.

    Attributes
    ----------
    adata
        Hidden counts are gone; (n_obs, n_genes), with graph.
    mask_layer
        Layer of what is known; ``None``: zeros are data.
    size_factor_key
        Library sizes; ``None``: the sum over the genes.
    estimand
        ``"captured"`` or ``"rate"``.
    score
        Function of a prediction, log1p(CP10K), (n_obs, n_genes).
    """

    adata: ad.AnnData
    mask_layer: str | None
    size_factor_key: str | None
    estimand: str
    score: Callable[[np.ndarray], dict[str, float]]


def read(path: Path) -> tuple[ad.AnnData, str | None]:
    """Read a slide with its genes chosen and its graph built, and the name of its slide column."""
    adata = ad.read_h5ad(path)
    sample_key = "sample" if "sample" in adata.obs and adata.obs["sample"].nunique() > 1 else None
    sc.pp.filter_cells(adata, min_counts=200)
    pp.select_genes(adata, sample_key=sample_key)
    adata = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()
    pp.spatial_neighbors(adata, sample_key=sample_key)
    return adata, sample_key


def task(adata: ad.AnnData, sample_key: str | None, protocol: str, seed: int) -> Task:
    """Hide a part of the counts as a protocol says."""
    if protocol in ("thinning", "shallow"):
        return _thinning(adata, 0.5 if protocol == "thinning" else 0.9, seed)
    hidden = pp.hold_out(adata, 0.3, protocol, genes="target_gene", sample_key=sample_key, seed=seed)
    pp.observed_mask(hidden)
    counts, library = hidden.layers["truth"], hidden.obs["total_counts"].to_numpy()
    dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    # captured values only: what the protocol asks for
    scored = np.asarray(hidden.layers["held_out"]) & (dense > 0)
    truth = np.log1p(dense / library[:, None] * 1e4)
    floor = metrics.poisson_floor(counts, library, scored)

    def score(prediction: np.ndarray) -> dict[str, float]:
        scores = metrics.completion_scores(truth, prediction, scored)
        return {**scores, "floor": floor, "excess": scores["mse"] - floor}

    return Task(hidden, "observed", "total_counts", "captured", score)


def _thinning(adata: ad.AnnData, fraction: float, seed: int) -> Task:
    given = pp.hold_out(adata, fraction, "thinning", seed=seed)
    rest = given.layers["truth"] - given.X
    mean = np.asarray(given.X.sum(axis=0), dtype=np.float64).ravel()
    mean = (mean + 0.1) / (mean + 0.1).sum()

    def score(prediction: np.ndarray) -> dict[str, float]:
        rate = np.maximum(np.expm1(prediction.astype(np.float64)) / 1e4, 1e-9)
        return {
            "d2": metrics.poisson_deviance_explained(rest, rate, gene_mean=mean),
            "log_likelihood": metrics.poisson_log_likelihood(rest, rate),
        }

    return Task(given, None, None, "rate", score)
