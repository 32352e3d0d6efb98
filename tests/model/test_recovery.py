"""On tissue whose rates are known, the model comes closer to them than the mean of neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import datasets, pp


@pytest.fixture(scope="module")
def tissue():
    adata = datasets.simulated_visium(n_spots=600, n_genes=100, seed=1)
    pp.spatial_neighbors(adata)
    return adata


@pytest.fixture(scope="module")
def model(fit, tissue):
    return fit(tissue, 50, n_latent=16, n_hidden=64)


def neighbor_mean(adata) -> np.ndarray:
    """log1p of the mean CP10K of a spot and its neighbours."""
    counts = adata.X.toarray().astype(float)
    rate = counts / counts.sum(axis=1, keepdims=True) * 1e4
    graph = adata.obsp["spatial_connectivities"] + sparse.eye(adata.n_obs)
    return np.log1p((graph @ rate) / np.asarray(graph.sum(axis=1)))


def error(adata, prediction) -> float:
    return float(((np.log1p(adata.layers["rate"] * 1e4) - prediction) ** 2).mean())


def test_rates_are_recovered_better_than_by_the_mean_of_neighbours(model, tissue):
    predicted = model.get_completed_expression(observed="model", return_numpy=True)
    ours, theirs = error(tissue, predicted), error(tissue, neighbor_mean(tissue))
    measured = error(tissue, np.log1p(tissue.X.toarray() / tissue.X.sum(axis=1).A1[:, None] * 1e4))
    assert theirs < measured  # averaging is a fair opponent
    assert ours < 0.8 * theirs


def test_of_every_kind_of_gene(model, tissue):
    """With domains and programmes, and without any spatial structure."""
    predicted = model.get_completed_expression(observed="model", return_numpy=True)
    pattern = tissue.var["pattern"].astype(str)
    for kind in ("programme", "domain", "none"):
        genes = pattern.str.startswith(kind).to_numpy()
        part = tissue[:, genes]
        assert error(part, predicted[:, genes]) < error(part, neighbor_mean(tissue)[:, genes]), kind


def test_completed_values_are_closer_to_the_truth_than_measured_ones(model, tissue):
    """Filling zeros only already helps."""
    completed = model.get_completed_expression(return_numpy=True)
    counts = tissue.X.toarray()
    measured = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    assert error(tissue, completed) < 0.7 * error(tissue, measured)


def test_the_standard_deviation_is_of_the_size_of_the_error(model, tissue):
    predicted = model.get_completed_expression(observed="model", return_numpy=True)
    _, spread = model.get_completed_expression(observed="model", return_std=True, return_numpy=True)
    residual = np.sqrt(((np.log1p(tissue.layers["rate"] * 1e4) - predicted) ** 2).mean())
    assert 0.7 * residual < np.sqrt((spread**2).mean()) < 1.4 * residual


@pytest.mark.parametrize("variance, lasts", [(0.0, (0.0, 0.35)), (0.5, (0.7, 1.0))])
def test_what_lasts_of_captured_values_is_told_from_sampling_noise(fit, variance, lasts):
    """Single genes deviate in single spots, or do not; nothing else tells about that."""
    rng = np.random.default_rng(0)
    slide = datasets.simulated_visium(n_spots=300, n_genes=30, seed=0)
    deviation = rng.gamma(1 / variance, variance, slide.shape) if variance else 1.0
    slide.X = sparse.csr_matrix(1 + rng.poisson(20 * deviation * np.ones(slide.shape)).astype(np.float32))
    slide.layers["known"] = np.ones(slide.shape, dtype=bool)
    model = fit(slide, 20, {"mask_layer": "known"}, gene_likelihood="normal")
    share = model.module.likelihood.lasting_share
    assert lasts[0] <= share.min() and share.max() <= lasts[1]


def test_the_share_of_the_library_that_the_genes_make_up(fit, slide):
    """It differs from spot to spot, and rates follow it: other genes' molecules are in the library too."""
    pp.spatial_neighbors(slide)
    seen = np.asarray(slide.X.sum(axis=1)).ravel()
    slide.obs["total"] = np.round(seen * np.random.default_rng(0).uniform(1.2, 6.0, len(seen)))
    model = fit(slide, 3, {"size_factor_key": "total"})
    rates = model.get_normalized_expression(library_size="latent", return_numpy=True)
    assert np.corrcoef(np.log(rates.sum(axis=1)), np.log(seen + 1))[0, 1] > 0.9
    shares = model.get_normalized_expression(return_numpy=True).sum(axis=1)
    np.testing.assert_allclose(np.median(shares * slide.obs["total"] / seen), 1.0, atol=0.15)
