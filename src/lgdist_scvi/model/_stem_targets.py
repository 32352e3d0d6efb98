"""What Stem learns: expected rates of the training spots, and latents that they may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.extmath import randomized_svd

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import in_memory
from lgdist_scvi._checks import check_choice
from lgdist_scvi._units import from_cp10k, log1p_cp10k
from lgdist_scvi.model._lgdist import LGDiST
from lgdist_scvi.model._stem_synthetic import synthetic_components

if TYPE_CHECKING:
    from anndata import AnnData

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
    synthetic
        Components of patches that were generated for the spots, of :func:`~lgdist_scvi.model._stem_synthetic.synthetic_components`.
    """

    rate: np.ndarray
    latents: np.ndarray
    synthetic: np.ndarray | None = None

    def fields(self) -> dict[str, np.ndarray | None]:
        """Name them as a batch does."""
        return {keys.TARGET_RATE: self.rate, keys.TARGET_LATENT: self.latents, keys.SYNTHETIC: self.synthetic}


def targets_of(
    model: Stem, targets: str | LGDiST, stage: str = "all", synthetic: AnnData | None = None, **train_kwargs: Any
) -> Targets:
    """Rates to learn and their latents, and generated patches; sets the latent of the module, if the networks are trained."""
    if not isinstance(targets, LGDiST):
        check_choice("targets", targets, ("expected", "counts"))
    generated = None if synthetic is None else synthetic_components(model, synthetic, stage)
    dataset = model.adata_manager.create_torch_dataset()
    setup, module = model.registry_["setup_args"], model.module
    draws = None
    if isinstance(targets, str) and targets == "counts":
        counts = in_memory(dataset.counts)
        counts = counts.toarray() if hasattr(counts, "toarray") else counts
        rate = (counts / np.maximum(dataset.library, 1.0)[:, None]).astype(np.float32)
        denoised = _at_the_level_of(_principal(dataset), rate)
    elif isinstance(targets, str) and setup["target_layer"] is not None:
        layer = model.adata[:, dataset.genes].layers[setup["target_layer"]]
        layer = in_memory(layer)
        rate = denoised = from_cp10k(np.expm1(layer.toarray() if hasattr(layer, "toarray") else layer)).astype(
            np.float32
        )
    else:
        completion = targets
        if not isinstance(targets, LGDiST):
            copy = model.copy_data()
            shared = ("layer", "mask_layer", "graph_key", "sample_key", "size_factor_key", "spatial_key")
            LGDiST.setup_anndata(copy, **{name: setup[name] for name in shared})
            completion = LGDiST(copy)
            completion.train(**train_kwargs)
        _check_spots(completion, dataset)
        rate = completion.get_normalized_expression(gene_list=dataset.genes, return_numpy=True)
        draws = completion.get_normalized_expression(gene_list=dataset.genes, n_samples=_N_DRAWS, return_mean=False)
        denoised = rate
    if stage != "diffusion" or not len(module.networks):
        module.set_basis(denoised)
    latents = module.latent_of(denoised)[:, None] if draws is None else module.latent_of(draws).swapaxes(0, 1)
    return Targets(rate, np.ascontiguousarray(latents), generated)


def _check_spots(completion: LGDiST, dataset: ImageDataset) -> None:
    """Refuse an LGDiST of other spots."""
    if completion.adata is None or not np.array_equal(completion.adata.obs_names, dataset.adata.obs_names):
        raise ValueError(
            "targets must be an LGDiST of the same spots in the same order; fit it on the data of this model"
        )


def _principal(dataset: ImageDataset) -> np.ndarray:
    """Rates from principal components of log1p(CP10K), float32, (n_obs, n_genes)."""
    values = log1p_cp10k(in_memory(dataset.counts), dataset.library)
    mean = values.mean(axis=0)
    scores, singular, axes = randomized_svd(
        values - mean, min(_RANK, *(size // 4 or 1 for size in values.shape)), n_iter=4, random_state=0
    )
    return from_cp10k(np.expm1(np.maximum(mean + (scores * singular) @ axes, 0.0))).astype(np.float32)


def _at_the_level_of(rate: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Rates of the same mean as counted ones, gene by gene: means of logarithms stand for less than means."""
    return rate * (counted.mean(axis=0) / np.maximum(rate.mean(axis=0), 1e-12))
