from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import matplotlib
import numpy as np
import pytest
import scvi
import torch

from lgdist_scvi import LGDiST, datasets, pp

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

REPOSITORY = Path(__file__).resolve().parents[1]

matplotlib.use("agg")
torch.set_num_threads(1)  # the networks of the tests are too small for more
scvi.settings.verbosity = logging.ERROR
# Time limits per example fail on a busy machine, and random examples make a failure hard to repeat elsewhere.
hypothesis.settings.register_profile("lgdist", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("lgdist")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real slides, named by LGDIST_DATA or lying beside the repository."""
    folder = Path(os.environ.get("LGDIST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real slides: {folder} is not there (set LGDIST_DATA to a folder that holds them)")
    return folder


@pytest.fixture
def slide() -> AnnData:
    """A small simulated slide, fresh for every test."""
    return datasets.simulated_visium(n_spots=150, n_genes=60, seed=0)


SIZES = {
    "n_profiles": 10,
    "n_mixtures": 2,
    "n_latent": 8,
    "n_hidden": 32,
    "n_layers": 1,
    "n_heads": 2,
    "n_denoiser_hidden": 32,
    "n_denoiser_layers": 1,
    "n_denoiser_heads": 2,
    "n_timesteps": 100,
}
QUICK = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="session")
def fit() -> Callable:
    """Function that registers and trains a small model: fit(adata, max_epochs, setup=..., **constructor arguments)."""

    def fit(
        adata: AnnData, max_epochs: int = 2, setup: dict | None = None, train: dict | None = None, **kwargs
    ) -> LGDiST:
        seed = scvi.settings.seed
        scvi.settings.seed = 0
        LGDiST.setup_anndata(adata, **(setup or {}))
        model = LGDiST(adata, **{**SIZES, **kwargs})
        model.train(max_epochs=max_epochs, **QUICK, **(train or {}))
        scvi.settings.seed = seed
        return model

    return fit


@pytest.fixture(scope="session")
def tissue() -> AnnData:
    """A simulated slide with a mask: 15 % of the entries, all of some spots, and one spot without a neighbour."""
    adata = datasets.simulated_visium(n_spots=220, n_genes=40, seed=0)
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 20].copy()
    adata.obsm["spatial"][0] = [1e5, 1e5]
    mask = np.random.default_rng(1).random(adata.shape) > 0.15
    mask[[17, 60, 61]] = False
    adata.layers["known"] = mask
    pp.spatial_neighbors(adata)
    assert adata.obsp["spatial_connectivities"][0].nnz == 0
    return adata


@pytest.fixture(scope="session")
def trained(fit, tissue) -> LGDiST:
    """Counts model with a mask. Tests must not write into its data."""
    return fit(tissue.copy(), 15, {"mask_layer": "known"})


@pytest.fixture(scope="session")
def captured(fit, tissue) -> LGDiST:
    """Model of captured values: every zero is missing. Tests must not write into its data."""
    adata = tissue.copy()
    adata.layers["known"] &= adata.X.toarray() > 0
    return fit(adata, 10, {"mask_layer": "known"})


@pytest.fixture(scope="session")
def cp10k() -> Callable:
    """Function that computes log1p(CP10K) of the known counts from scratch, in float64, rounded once."""

    def cp10k(adata: AnnData, mask_layer: str | None = "known") -> np.ndarray:
        counts = np.asarray(adata.X.todense() if hasattr(adata.X, "todense") else adata.X, dtype=np.float64)
        mask = np.ones(counts.shape, bool) if mask_layer is None else np.asarray(adata.layers[mask_layer])
        library = (counts * mask).sum(axis=1, keepdims=True)
        return np.log1p(np.divide(counts, library, out=np.zeros_like(counts), where=library > 0) * 1e4).astype(
            np.float32
        )

    return cp10k


@pytest.fixture
def aside(trained) -> np.ndarray:
    """Known entries that training set aside, but for spots that it set aside whole, (n_obs, n_vars)."""
    aside = np.asarray(trained.adata.layers["known"]) & _pattern(trained)
    aside[trained.module.spots_set_aside(len(aside))] = False
    return aside


@pytest.fixture
def visible(trained) -> np.ndarray:
    """Known entries that training did not set aside, (n_obs, n_vars)."""
    return np.asarray(trained.adata.layers["known"]) & ~_pattern(trained)


def _pattern(model) -> np.ndarray:
    return model.module.set_aside(torch.arange(model.adata.n_obs)).numpy()
