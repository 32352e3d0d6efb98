"""Negative controls of a small model."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from scipy import sparse

from lgdist_scvi import LGDiST, datasets, metrics
from lgdist_scvi.metrics._controls import _shuffled, _with_poisson_genes

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
    before, data = model.copy_data(), _shuffled(model, np.random.default_rng(0))
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


def _registered(counts: np.ndarray, mask: np.ndarray | None, **model_kwargs) -> LGDiST:
    adata = datasets.simulated_visium(n_spots=counts.shape[0], n_genes=counts.shape[1], seed=0)
    adata.layers["raw"], adata.X = counts.astype(np.float32), None
    setup = {"layer": "raw"}
    if mask is not None:
        adata.layers["known"] = mask
        setup["mask_layer"] = "known"
    LGDiST.setup_anndata(adata, **setup)
    return LGDiST(adata, **SIZES, **model_kwargs)


@pytest.mark.parametrize("case", ["zeros are data", "zeros are missing", "no zeros", "few counts"])
def test_poisson_genes_are_of_the_kind_of_the_others(case):
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.02 if case == "few counts" else 2.0, (120, 40)) + (case == "no zeros")
    counts[0] += 1  # every gene and spot has counts
    counts[:, 0] += 1
    mask, kwargs = None, {"gene_likelihood": "normal"} if case == "no zeros" else {}
    if case.startswith("zeros"):
        mask = rng.random(counts.shape) < 0.9 if case == "zeros are data" else counts > 0
        mask[5:9] = False  # spots of which nothing is observed
    model = _registered(counts, mask, **kwargs)
    data, added = _with_poisson_genes(model, 8, np.random.default_rng(1))
    assert model.adata.n_vars == 40 and data.n_vars == 48 and added.tolist() == list(range(40, 48))
    drawn = data.X.toarray()[:, added]
    assert drawn.any(axis=0).all()
    if mask is None:
        assert not data.layers
        assert (drawn > 0).all() == (case == "no zeros")
    else:
        observed = data.layers["known"]
        np.testing.assert_array_equal(observed[:, :40], mask)
        assert not observed[5:9].any() and not drawn[5:9].any()
        assert ((drawn > 0) == observed[:, added]).all() == (case == "zeros are missing")
        assert observed[:, added].any(axis=0).all()
    # such genes can be registered and modelled as the others are
    LGDiST.setup_anndata(data, mask_layer=None if mask is None else "known")
    assert LGDiST(data, **SIZES, **kwargs).gene_likelihood_ == model.gene_likelihood_


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
