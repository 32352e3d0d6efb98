from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scvi

from lgdist_scvi import LGDiST, datasets

SIZES = {
    "n_profiles": 10,
    "n_mixtures": 2,
    "n_latent": 6,
    "n_hidden": 24,
    "n_layers": 1,
    "n_heads": 2,
    "n_denoiser_hidden": 16,
    "n_denoiser_layers": 1,
    "n_denoiser_heads": 2,
    "n_timesteps": 50,
}


@pytest.fixture
def untrained() -> Callable:
    """Function that gives an untrained small model of a simulated slide."""
    scvi.settings.seed = 0

    def untrained(n_samples: int = 1, mask: bool = False, **kwargs) -> LGDiST:
        adata = datasets.simulated_visium(n_spots=150, n_genes=30, n_samples=n_samples, seed=0)
        adata.layers["known"] = np.random.default_rng(0).random(adata.shape) < 0.9
        LGDiST.setup_anndata(adata, sample_key="sample", mask_layer="known" if mask else None)
        return LGDiST(adata, **{**SIZES, **kwargs})

    yield untrained
    scvi.settings.seed = None
