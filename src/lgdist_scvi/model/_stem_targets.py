"""What Stem learns: expected rates of the training spots, and latents that they may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.extmath import randomized_svd

from lgdist_scvi._anndata import in_memory
from lgdist_scvi._units import from_cp10k, log1p_cp10k
from lgdist_scvi.model._lgdist import LGDiST

if TYPE_CHECKING:
    from lgdist_scvi.data import ImageDataset
    from lgdist_scvi.model._stem import Stem

_N_DRAWS = 8  # of the rates that LGDiST holds possible
_RANK = 20


@dataclass
class Targets:
    """Targets of training.

    Attributes
    ----------
    rate
        Share of the library that the networks fit, float32, (n_obs, n_genes).
    latents
        Latents that the expected rates may have, float32, (n_obs, n_draws, n_latent).
    """

    rate: np.ndarray
    latents: np.ndarray


def targets_of(model: Stem, targets: str, fit_basis: bool, **train_kwargs: Any) -> Targets:
    """Rates to learn and their latents; sets the latent of the module, if asked to."""
    dataset = model.adata_manager.create_torch_dataset()
    setup, module = model.registry_["setup_args"], model.module
    draws = None
    if targets == "counts":
        denoised = _principal(dataset)
        counts = dataset.counts.toarray() if hasattr(dataset.counts, "toarray") else np.asarray(dataset.counts)
        rate = (counts / np.maximum(dataset.library, 1.0)[:, None]).astype(np.float32)
    elif setup["target_layer"] is not None:
        layer = model.adata[:, dataset.genes].layers[setup["target_layer"]]
        layer = in_memory(layer)
        rate = denoised = from_cp10k(np.expm1(layer.toarray() if hasattr(layer, "toarray") else layer)).astype(
            np.float32
        )
    else:
        copy = model.copy_data()
        shared = ("layer", "mask_layer", "graph_key", "sample_key", "size_factor_key", "spatial_key")
        LGDiST.setup_anndata(copy, **{name: setup[name] for name in shared})
        completion = LGDiST(copy)
        completion.train(**train_kwargs)
        rate = denoised = completion.get_normalized_expression(return_numpy=True)
        draws = completion.get_normalized_expression(n_samples=_N_DRAWS, return_mean=False)
    if fit_basis:
        module.set_basis(denoised)
    latents = module.latent_of(denoised)[:, None] if draws is None else module.latent_of(draws).swapaxes(0, 1)
    return Targets(rate, np.ascontiguousarray(latents))


def _principal(dataset: ImageDataset) -> np.ndarray:
    """Rates from principal components of log1p(CP10K), float32, (n_obs, n_genes)."""
    values = log1p_cp10k(dataset.counts, dataset.library)
    mean = values.mean(axis=0)
    scores, singular, axes = randomized_svd(values - mean, min(_RANK, *values.shape), n_iter=4, random_state=0)
    return from_cp10k(np.expm1(np.maximum(mean + (scores * singular) @ axes, 0.0))).astype(np.float32)
