from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi.module import fit_experts

SIZES = {
    "n_latent": 8,
    "n_factors": 4,
    "n_profiles": 5,
    "n_mixtures": 2,
    "n_hidden": 32,
    "n_layers": 2,
    "n_heads": 2,
    "n_denoiser_hidden": 32,
    "n_denoiser_layers": 2,
    "n_denoiser_heads": 2,
    "n_timesteps": 100,
}


@pytest.fixture(scope="session")
def build() -> Callable:
    """Function that gives an untrained module and one batch of a simulated slide, 30 % of the entries masked."""

    def build(likelihood: str = "nb", conditioning: str = "spot+neighborhood", n_spots: int = 24):
        adata = datasets.simulated_visium(n_spots=80, n_genes=40, seed=0)
        adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 10].copy()
        rng = np.random.default_rng(0)
        mask = rng.random(adata.shape) > 0.3
        if likelihood == "normal":
            mask &= adata.X.toarray() > 0
        adata.layers["known"] = mask
        pp.spatial_neighbors(adata)
        LGDiST.setup_anndata(adata, mask_layer="known")
        torch.manual_seed(0)
        model = LGDiST(adata, gene_likelihood=likelihood, conditioning=conditioning, set_aside_fraction=0.2, **SIZES)
        module = model.module.eval()
        # networks start with parts at zero, through which nothing could leak
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[1] ** 0.5 * 2)
        batch = model.adata_manager.create_torch_dataset()[np.arange(n_spots)]
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in batch.items()}
        fit_experts(module, [tensors], torch.Generator().manual_seed(0))
        module.experts.weights_visible.fill_(0.3)
        module.experts.weights_hidden.fill_(0.2)
        if likelihood != "normal":
            module.likelihood.gene_effects.variance.fill_(0.3)
        return module, tensors

    return build


@pytest.fixture(scope="session", params=["nb", "normal"])
def likelihood(request) -> str:
    return request.param


@pytest.fixture(scope="session", params=["spot+neighborhood", "neighborhood"])
def conditioning(request) -> str:
    return request.param
