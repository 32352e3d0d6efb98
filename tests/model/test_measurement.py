"""Draws from the posterior predictive distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scvi.criticism import PosteriorPredictiveCheck

from lgdist_scvi import datasets, pp
from lgdist_scvi._units import log1p_cp10k


def test_shapes_are_those_of_scvi_tools(trained, tissue):
    genes = list(tissue.var_names[[7, 1]])
    one = trained.posterior_predictive_sample(seed=0)
    many = trained.posterior_predictive_sample(n_samples=3, seed=0)
    assert one.shape == tissue.shape and many.shape == (*tissue.shape, 3)
    part = trained.posterior_predictive_sample(indices=[3, 50], gene_list=genes, n_samples=3, seed=0, batch_size=1)
    np.testing.assert_array_equal(part.todense(), many.todense()[[3, 50]][:, [7, 1]])
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 1"):
        trained.posterior_predictive_sample(n_samples=0)


def test_draws_are_counts_about_the_expected_value_with_noise(trained):
    drawn = trained.posterior_predictive_sample(n_samples=200, seed=1).todense()
    assert (drawn >= 0).all() and (drawn == np.rint(drawn)).all()
    samples = trained.get_completed_expression(n_samples=200, return_mean=False, observed="model", seed=1)
    library = trained.adata_manager.create_torch_dataset().library
    seen = library > 0
    expected = np.expm1(samples).mean(axis=0)[seen] / 1e4 * library[seen, None]
    found = drawn[seen].mean(axis=2)
    assert found.sum() == pytest.approx(expected.sum(), rel=0.02)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    # at least the noise of a count
    assert drawn[seen].var(axis=2).mean() > expected.mean()


def test_captured_values_are_counts_of_at_least_one(captured):
    drawn = captured.posterior_predictive_sample(n_samples=100, seed=1).todense()
    assert (drawn >= 1).all() and (drawn == np.rint(drawn)).all()
    library = captured.adata_manager.create_torch_dataset().library
    seen = library > 0
    expected = captured.get_completed_expression(observed="model", return_numpy=True)[seen]
    found = np.mean([log1p_cp10k(drawn[seen, :, i], library[seen]) for i in range(100)], axis=0)
    assert np.abs(found - expected).mean() < 0.2


def test_intervals_hold_as_many_draws_as_they_say(fit):
    adata = datasets.simulated_visium(n_spots=300, n_genes=60, seed=0)
    # deep: where counts are small the median alone holds more
    counts = np.random.default_rng(0).poisson(3000 * adata.layers["rate"])
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    pp.spatial_neighbors(adata)
    model = fit(adata, 30)
    drawn = model.posterior_predictive_sample(n_samples=20, seed=1).todense()
    library = np.asarray(adata.X.sum(axis=1)).ravel()
    lower, upper = model.get_prediction_interval(0.8, observed="model", return_numpy=True)
    values = np.stack([log1p_cp10k(drawn[:, :, i], library) for i in range(20)])
    inside = ((values >= lower - 1e-5) & (values <= upper + 1e-5)).mean(axis=(0, 1))
    common = counts.mean(axis=0) > 20
    assert common.sum() > 20
    assert inside[common].mean() == pytest.approx(0.8, abs=0.08)


def test_scvi_tools_checks_it(trained):
    adata = trained.adata.copy()
    adata.X = adata.X.astype(int)  # of floats scvi-tools takes dense matrices only
    check = PosteriorPredictiveCheck(adata, {"LGDiST": trained}, n_samples=3)
    check.coefficient_of_variation("cells")
    assert np.isfinite(check.metrics["cv_gene"]["LGDiST"]).all()
