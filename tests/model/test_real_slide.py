"""The whole path on a real slide."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from lgdist_scvi import LGDiST, pp


@pytest.fixture(scope="module")
def slide(shared_data) -> ad.AnnData:
    path = shared_data / "human_breast_visium_subset.h5ad"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {shared_data}")
    adata = ad.read_h5ad(path)
    detected = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    adata = adata[:, np.argsort(-detected)[100:300]].copy()
    pp.spatial_neighbors(adata)
    return adata


def neighbor_mean(adata, observed: np.ndarray) -> np.ndarray:
    """Mean of the neighbours' observed log1p(CP10K), or the gene's where there is none."""
    counts = adata.X.toarray().astype(float) * observed
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    graph = adata.obsp["spatial_connectivities"]
    n = graph @ observed.astype(float)
    gene_mean = values.sum(axis=0) / observed.sum(axis=0)
    return np.where(n > 0, (graph @ values) / np.maximum(n, 1), gene_mean)


def test_hold_out_train_complete_write_and_read(slide, tmp_path):
    hidden = pp.hold_out(slide, fraction=0.3, seed=0)
    pp.observed_mask(hidden)
    LGDiST.setup_anndata(hidden, mask_layer="observed")
    model = LGDiST(hidden, n_hidden=64, n_latent=16, n_denoiser_hidden=32, n_denoiser_layers=1)
    model.train(max_epochs=40, accelerator="cpu", enable_progress_bar=False)
    model.complete(silent=True)

    counts, observed = hidden.X.toarray().astype(float), np.asarray(hidden.layers["observed"])
    library = counts.sum(axis=1, keepdims=True)
    held_out = np.asarray(hidden.layers["held_out"])
    truth = np.log1p(hidden.layers["truth"].toarray() / library * 1e4)
    completed = hidden.layers["completed"]
    np.testing.assert_array_equal(completed[observed], np.log1p(counts / library * 1e4).astype(np.float32)[observed])
    mse = lambda prediction: ((truth - prediction)[held_out] ** 2).mean()  # noqa: E731
    assert mse(completed) < 0.9 * mse(neighbor_mean(hidden, observed))
    inside = (hidden.layers["completed_lower"] <= truth + 1e-5) & (truth - 1e-5 <= hidden.layers["completed_upper"])
    assert 0.84 < inside[held_out].mean() < 0.97

    hidden.write_h5ad(tmp_path / "completed.h5ad")
    read = ad.read_h5ad(tmp_path / "completed.h5ad")
    np.testing.assert_array_equal(read.layers["completed"], completed)
    assert read.uns["completed"]["estimand"] == "captured"


def test_the_three_lines(slide):
    """With counts, without a mask, as in the documentation."""
    adata = slide.copy()
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata, n_hidden=64, n_latent=16, n_denoiser_hidden=32, n_denoiser_layers=1)
    model.train(max_epochs=5, accelerator="cpu", enable_progress_bar=False)
    model.complete(silent=True)
    counts = adata.X.toarray().astype(float)
    measured = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    np.testing.assert_array_equal(adata.layers["completed"][counts > 0], measured[counts > 0])
    assert (adata.layers["completed"][counts == 0] > 0).all()
    assert (adata.X != slide.X).nnz == 0
