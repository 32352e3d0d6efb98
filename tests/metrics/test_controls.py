"""Negative controls of a small model."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from scipy import sparse

from lgdist_scvi import LGDiST, datasets, metrics
from lgdist_scvi.metrics._controls import _copy, _shuffle

SIZES = {
    "n_latent": 8, "n_hidden": 32, "n_layers": 1, "n_heads": 2, "n_denoiser_hidden": 32, "n_denoiser_layers": 1,
    "n_denoiser_heads": 2, "n_timesteps": 100, "n_profiles": 10, "n_mixtures": 2,
}  # fmt: skip
QUICK = {"max_epochs": 30, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def model() -> LGDiST:
    scvi.settings.seed = 0
    adata = datasets.simulated_visium(n_spots=300, n_genes=64, n_samples=2, seed=0)
    # deeper than simulated, so that neighbours tell something within few steps
    counts = np.random.default_rng(0).poisson(500 * adata.layers["rate"])
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    with pytest.warns(UserWarning, match="names 2 slides and is used"):
        LGDiST.setup_anndata(adata)
    model = LGDiST(adata, **SIZES)
    model.train(**QUICK)
    scvi.settings.seed = None
    return model


@pytest.fixture(scope="module")
def table(model):
    before = {key: value.copy() for key, value in model.adata.obsm.items()}
    table = metrics.negative_controls(model, n_poisson=8, train_kwargs=QUICK)
    # the model's own data stay as they are
    np.testing.assert_array_equal(model.adata.obsm["spatial"], before["spatial"])
    assert model.adata.n_vars == 64
    return table


def test_nothing_is_found_where_nothing_is(table):
    assert list(table.columns) == ["reference", "control", "excess", "limit", "passed"]
    assert table.loc["skill from neighbors alone", "control"] <= 0.02
    assert table["passed"].dropna().all()
    assert table["passed"].isna().sum() == 1  # what space gives has no limit


def test_what_space_gives_is_seen(table):
    alone = table.loc["skill from neighbors alone"]
    assert alone["reference"] > alone["control"] + 0.02


def test_shuffling_moves_spots_within_slides_with_their_graph(model):
    data, setup = _copy(model)
    before = data.copy()
    _shuffle(data, setup, np.random.default_rng(0))
    graph, shuffled = (sparse.coo_matrix(a.obsp["spatial_connectivities"]) for a in (before, data))
    assert graph.nnz == shuffled.nnz

    def lengths(adata, edges):
        xy = adata.obsm["spatial"]
        return np.sort(np.linalg.norm(xy[edges.row] - xy[edges.col], axis=1))

    np.testing.assert_allclose(lengths(data, shuffled), lengths(before, graph))
    assert not np.allclose(data.obsm["spatial"], before.obsm["spatial"])
    samples = data.obs["sample"].to_numpy()
    assert (samples[shuffled.row] == samples[shuffled.col]).all()
    assert (data.X != before.X).nnz == 0
    for sample in np.unique(samples):
        first, second = (a.obsm["spatial"][samples == sample] for a in (before, data))
        np.testing.assert_array_equal(np.sort(first.view("f8,f8").ravel()), np.sort(second.view("f8,f8").ravel()))


@pytest.mark.parametrize("captured", [False, True])
def test_masks_and_library_sizes(captured):
    adata = datasets.simulated_visium(n_spots=120, n_genes=40, seed=0)
    mask = np.random.default_rng(0).random(adata.shape) < 0.9
    adata.layers["known"] = mask & (adata.X.toarray() > 0) if captured else mask
    adata.obs["total"] = 2.0 * np.asarray(adata.X.sum(axis=1)).ravel()
    LGDiST.setup_anndata(adata, mask_layer="known", size_factor_key="total")
    model = LGDiST(adata, **SIZES)
    model.train(**{**QUICK, "max_epochs": 1})
    table = metrics.negative_controls(model, "poisson", train_kwargs={**QUICK, "max_epochs": 1})
    assert len(table) == 2
    assert np.isfinite(table[["reference", "control"]].to_numpy(dtype=float)).all()


def test_errors(model):
    with pytest.raises(ValueError, match="unknown controls"):
        metrics.negative_controls(model, "coordinates")
    with pytest.raises(ValueError, match="not trained yet"):
        metrics.negative_controls(LGDiST(model.adata, **SIZES))
