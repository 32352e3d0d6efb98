"""Data that are read when they are asked for give what the same data in memory give."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from lgdist_scvi import LGDiST, datasets, pl, pp

pytest.importorskip("dask")
pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[ad.AnnData, Path]:
    adata = datasets.simulated_visium(n_spots=120, n_genes=30, n_samples=2, seed=0)
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["total_counts"] = adata.obs["depth"]
    path = tmp_path_factory.mktemp("lazy") / "slides.zarr"
    adata.write_zarr(path)
    return adata, path


@pytest.fixture(scope="module")
def model(stored, fit) -> LGDiST:
    return fit(stored[0].copy(), 1, {"sample_key": "sample", "size_factor_key": "depth"})


@pytest.fixture
def lazy(stored) -> ad.AnnData:
    return ad.experimental.read_lazy(stored[1])


def values(matrix) -> np.ndarray:
    matrix = matrix.compute() if hasattr(matrix, "compute") else matrix
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix)


def test_completed(model, stored, lazy):
    loaded = stored[0].copy()
    for data in (loaded, lazy):
        model.complete(data, silent=True)
    for suffix in ("", "_std", "_lower", "_upper", "_provenance"):
        name = f"completed{suffix}"
        np.testing.assert_array_equal(values(lazy.layers[name]), loaded.layers[name])
    skill = lazy.var["completed_skill"]
    np.testing.assert_array_equal(np.asarray(skill), loaded.var["completed_skill"])
    again = lazy.to_memory()
    np.testing.assert_array_equal(again.layers["completed"], loaded.layers["completed"])
    assert again.uns["completed"]["data"] == loaded.uns["completed"]["data"]


def test_trained_on(lazy, stored, fit, model):
    setup = {"sample_key": "sample", "size_factor_key": "depth"}
    ours = fit(lazy, 1, setup)
    np.testing.assert_array_equal(
        ours.get_completed_expression(return_numpy=True), model.get_completed_expression(return_numpy=True)
    )


@pytest.mark.parametrize("scheme", ["entry", "spot", "block", "sample", "thinning"])
def test_held_out(scheme, stored, lazy):
    sample_key = "sample" if scheme in ("block", "sample") else None
    hidden, expected = (pp.hold_out(data, scheme=scheme, sample_key=sample_key) for data in (lazy, stored[0]))
    np.testing.assert_array_equal(values(hidden.X), values(expected.X))
    np.testing.assert_array_equal(hidden.layers["held_out"], expected.layers["held_out"])
    np.testing.assert_array_equal(np.asarray(hidden.obs["total_counts"]), expected.obs["total_counts"])


def test_drawn(model, stored, lazy):
    loaded = stored[0].copy()
    for data in (loaded, lazy):
        model.complete(data, layer_added="drawn", silent=True)
    for draw in (pl.completion, pl.prediction):
        figures = [draw(data, "gene_03", layer="drawn") for data in (loaded, lazy)]
        drawn = [[ax.collections[0].get_array() for ax in figure.axes if ax.collections] for figure in figures]
        assert len(drawn[0]) >= 6
        for ours, expected in zip(*drawn, strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert not plt.get_fignums()


def test_prepared(stored, lazy):
    loaded = stored[0].copy()
    for data in (loaded, lazy):
        pp.select_genes(data, n_targets=5, n_genes=10, sample_key="sample", min_context_detection=0)
        pp.image_features(data, encoder="stain", sample_key="sample", silent=True)
    np.testing.assert_array_equal(np.asarray(lazy.var["target_gene"]), loaded.var["target_gene"])
    np.testing.assert_array_equal(values(lazy.obsm["X_image"]), loaded.obsm["X_image"])
