from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi import datasets, pp


def moran_by_hand(values: np.ndarray, graph: np.ndarray) -> np.ndarray:
    """Moran's I from its definition, rows of the graph summing to 1."""
    weights = graph / np.maximum(graph.sum(1, keepdims=True), 1)
    deviations = values - values.mean(0)
    numerator = np.einsum("ig,ij,jg->g", deviations, weights, deviations)
    return len(values) / weights.sum() * numerator / (deviations**2).sum(0)


@pytest.fixture(scope="module")
def slides() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=500, n_genes=80, n_samples=2, seed=1)


def test_moran_is_the_definition_averaged_over_slides(slides):
    adata = slides[100:].copy()  # slides of different size: 150 and 250 spots
    pp.select_genes(adata, n_targets=10, n_genes=40, sample_key="sample", min_context_detection=0.01)
    expected, sizes = [], []
    for name in ("slide_1", "slide_2"):
        part = adata[adata.obs["sample"] == name].copy()
        pp.spatial_neighbors(part)
        counts = part.X.toarray().astype(np.float64)
        values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
        expected.append(moran_by_hand(values, part.obsp["spatial_connectivities"].toarray()))
        sizes.append(part.n_obs)
    expected = np.average(expected, axis=0, weights=sizes)
    assert sizes == [150, 250]
    tested = adata.var["moranI"].notna().to_numpy()
    assert tested.sum() > 60
    np.testing.assert_allclose(adata.var["moranI"][tested], expected[tested], rtol=1e-6, atol=1e-9)


def test_choice_follows_detection_and_rank(slides):
    adata = slides.copy()
    pp.select_genes(adata, n_targets=12, n_genes=40, sample_key="sample")
    detection = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    moran = adata.var["moranI"].to_numpy()
    target, context = adata.var["target_gene"].to_numpy(), adata.var["context_gene"].to_numpy()
    assert target.dtype == context.dtype == bool
    assert target.sum() == 12 and context.sum() == 28
    assert not (target & context).any()
    assert (detection[target] >= 0.4).all()
    assert moran[target].min() >= moran[~target & (detection >= 0.4)].max()
    assert moran[context].min() >= np.nanmax(moran[~target & ~context])
    np.testing.assert_array_equal(np.isnan(moran), detection < 0.03)
    np.testing.assert_array_equal(adata.obs["total_counts"], np.asarray(adata.X.sum(axis=1)).ravel())


def test_finds_spatial_genes():
    adata = datasets.simulated_visium(n_spots=800, n_genes=100, seed=0)
    pp.select_genes(adata, n_targets=15, n_genes=30)
    assert (adata.var["pattern"][adata.var["target_gene"]] != "none").all()
    none = adata.var["pattern"] == "none"
    assert adata.var["moranI"][none].abs().max() < 0.12
    assert adata.var["moranI"][~none].median() > 0.08


@pytest.mark.parametrize("to_format", [sparse.csc_matrix, sparse.csr_array, sparse.csr_matrix.toarray])
def test_same_for_every_format_and_layer(slides, to_format):
    reference, adata = slides.copy(), slides.copy()
    pp.select_genes(reference, 10, 30, sample_key="sample")
    adata.layers["counts"] = to_format(slides.X)
    adata.X = np.zeros(adata.shape)
    pp.select_genes(adata, 10, 30, layer="counts", sample_key="sample")
    for column in ("target_gene", "context_gene", "moranI"):
        np.testing.assert_array_equal(adata.var[column], reference.var[column])
    np.testing.assert_array_equal(adata.obs["total_counts"], reference.obs["total_counts"])
    assert not adata.X.any()


def test_nothing_else_is_written(slides):
    adata = slides.copy()
    pp.select_genes(adata, 10, 30, sample_key="sample")
    assert set(adata.var) - set(slides.var) == {"target_gene", "context_gene", "moranI"}
    assert set(adata.obs) - set(slides.obs) == {"total_counts"}
    assert not adata.obsp and set(adata.uns) == {"spatial"}
    assert (adata.X != slides.X).nnz == 0
    subset = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()
    assert subset.shape == (500, 30)
    assert subset.obs["total_counts"].sum() == slides.X.sum()


def test_gene_absent_from_a_slide_counts_as_unstructured_there(slides):
    adata = slides.copy()
    dense = adata.X.toarray()
    dense[:, 0] = 0
    dense[:250, 0] = np.arange(250) % 7
    adata.X = dense
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pp.select_genes(adata, 10, 30, sample_key="sample")
    one = adata[:250].copy()
    pp.select_genes(one, 10, 30)
    assert adata.var["moranI"].iloc[0] == pytest.approx(one.var["moranI"].iloc[0] / 2)


def test_empty_spots_and_tiny_slides(slides):
    adata = slides.copy()
    dense = adata.X.toarray()
    dense[[0, 3]] = 0
    adata.X = dense
    adata.obs["slide"] = np.where(np.arange(500) == 499, "lone", adata.obs["sample"].astype(str))
    pp.select_genes(adata, 10, 30, sample_key="slide")
    assert np.isfinite(adata.var["moranI"][adata.var["target_gene"]]).all()
    assert adata.obs["total_counts"].iloc[0] == 0


def test_too_few_genes_are_taken_with_a_warning(slides):
    adata = slides.copy()
    with pytest.warns(UserWarning) as caught:
        pp.select_genes(adata, sample_key="sample")
    messages = [str(warning.message) for warning in caught]
    assert any("of 128 target genes" in m and "lower min_target_detection" in m for m in messages)
    assert any("of 1,024 genes in all" in m and "lower min_context_detection" in m for m in messages)
    detection = np.asarray((adata.X > 0).mean(axis=0)).ravel()
    np.testing.assert_array_equal(adata.var["target_gene"], detection >= 0.4)
    np.testing.assert_array_equal(adata.var["target_gene"] | adata.var["context_gene"], detection >= 0.03)


def test_errors(slides):
    adata = slides.copy()
    with pytest.raises(ValueError, match="expected n_targets <= n_genes, got n_targets=20 and n_genes=10"):
        pp.select_genes(adata, n_targets=20, n_genes=10)
    with pytest.raises(ValueError, match="n_neighbors must be a whole number of at least 1, got 0"):
        pp.select_genes(adata, n_neighbors=0)
    with pytest.raises(ValueError, match="min_target_detection is a fraction"):
        pp.select_genes(adata, min_target_detection=40)
    with pytest.raises(KeyError, match="'slide' not found in adata.obs; available: 'sample'"):
        pp.select_genes(adata, sample_key="slide")
    adata.obsm["spatial"][1] = adata.obsm["spatial"][0]
    with pytest.raises(ValueError, match="share their coordinates .*keep one spot per place"):
        pp.select_genes(adata, sample_key="sample")
    with pytest.raises(ValueError, match="adata has 0 spots"):
        pp.select_genes(adata[:0].copy())
    far = ad.AnnData(np.ones((3, 4), dtype=np.float32), obsm={"spatial": np.arange(6.0).reshape(3, 2)})
    far.obs["slide"] = ["a", "b", "c"]
    with pytest.raises(ValueError, match="no two spots are neighbours"):
        pp.select_genes(far, 1, 2, sample_key="slide")
    far.X = np.zeros((3, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="none of 4 genes is detected in 3% of spots; lower min_context_detection"):
        pp.select_genes(far, 1, 2)
    del far.obsm["spatial"]
    with pytest.raises(KeyError, match="'spatial' not found in adata.obsm"):
        pp.select_genes(far, 1, 2)


def test_real_slide(shared_data):
    adata = ad.read_h5ad(shared_data / "human_breast_visium_subset.h5ad")
    pp.select_genes(adata)
    assert adata.var["target_gene"].sum() == 128
    assert adata.var["context_gene"].sum() == 896
    assert adata.var["moranI"][adata.var["target_gene"]].min() > 0.4


def test_threads_of_torch_stay_as_they_are():
    """A user who trains on one thread still does so after genes were chosen."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        pp.select_genes(datasets.simulated_visium(n_spots=80, n_genes=40, seed=0), n_targets=5, n_genes=20)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
