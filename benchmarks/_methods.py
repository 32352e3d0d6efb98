"""Methods under one signature: a task in, log1p(CP10K) of every entry out."""

from __future__ import annotations

from functools import partial

import numpy as np
import scvi

from benchmarks._protocols import Task
from lgdist_scvi import LGDiST
from lgdist_scvi.metrics import baselines


def _baseline(name: str, task: Task, seed: int) -> np.ndarray:
    genes = "target_gene" if task.mask_layer else None
    return getattr(baselines, name)(
        task.adata, mask_layer=task.mask_layer, size_factor_key=task.size_factor_key, genes=genes, seed=seed
    )


def trained(task: Task, seed: int, stage: str = "all", train_kwargs: dict | None = None, **model_kwargs) -> LGDiST:
    """Train LGDiST on a task."""
    scvi.settings.seed = seed
    LGDiST.setup_anndata(task.adata, mask_layer=task.mask_layer, size_factor_key=task.size_factor_key)
    model = LGDiST(task.adata, seed=seed, **model_kwargs)
    model.train(stage=stage, enable_progress_bar=False, **(train_kwargs or {}))
    return model


def _lgdist(task: Task, seed: int, **kwargs) -> np.ndarray:
    model = trained(task, seed, **kwargs)
    return model.get_completed_expression(observed="model", estimand=task.estimand, return_numpy=True)


METHODS = {
    **{
        name: partial(_baseline, name)
        for name in (
            "gene_mean",
            "neighbor_mean",
            "adaptive_median",
            "knn",
            "ridge",
            "pca",
            "poisson_nmf",
            "soft_impute",
        )
    },
    "lgdist": _lgdist,
    "lgdist_vae": partial(_lgdist, stage="vae"),
}
