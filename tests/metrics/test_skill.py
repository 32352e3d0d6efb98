"""Squared errors of a model and of baselines, summarised by gene."""

from __future__ import annotations

import numpy as np
import pytest

from lgdist_scvi import LGDiST, metrics
from lgdist_scvi.metrics._skill import compare


def test_skill_by_hand():
    genes = np.array([0, 0, 2, 2, 2])
    model = np.array([1.0, 3.0, 1.0, 1.0, 4.0])
    baselines = {"first": np.array([4.0, 4.0, 1.0, 1.0, 1.0]), "second": np.array([5.0, 5.0, 0.5, 1.0, 1.5])}
    table = compare(genes, 3, model, baselines)
    np.testing.assert_array_equal(table["n"], [2, 0, 3])
    np.testing.assert_allclose(table["mse_model"], [2, np.nan, 2])
    np.testing.assert_allclose(table["mse_baseline"], [4, np.nan, 1])
    np.testing.assert_allclose(table["skill"], [0.5, np.nan, -1])
    assert table["baseline"][0] == "first"
    np.testing.assert_allclose(table["mse: second"], [5, 0, 1])


def test_standard_error_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    model, baseline = rng.exponential(1.0, (2, 400, 60))
    baseline = 0.5 * model + 0.7 * baseline  # errors of two methods on the same entry go together
    genes = np.repeat(np.arange(400), 60)
    table = compare(genes, 400, model.ravel(), {"only": baseline.ravel()})
    assert table["skill_se"].mean() == pytest.approx(table["skill"].std(), rel=0.15)


def test_a_baseline_without_error_leaves_no_skill():
    table = compare(np.zeros(3, dtype=int), 1, np.ones(3), {"only": np.zeros(3)})
    assert np.isnan(table["skill"][0])


def test_an_untrained_model_is_refused(slide):
    LGDiST.setup_anndata(slide)
    with pytest.raises(ValueError, match=r"not trained yet; call model.train\(\)"):
        metrics.skill_per_gene(LGDiST(slide))
