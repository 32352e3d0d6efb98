from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import mean_absolute_error, r2_score

from lgdist_scvi import metrics


@pytest.fixture
def entries() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.gamma(2.0, size=(40, 12))
    prediction = truth + rng.normal(size=truth.shape)
    return truth, prediction, rng.random(truth.shape) < 0.5


def test_agrees_with_numpy_and_sklearn(entries):
    truth, prediction, mask = entries
    scores = metrics.completion_scores(truth, prediction, mask)
    assert scores["n"] == mask.sum()
    assert scores["mse"] == pytest.approx(np.mean((truth - prediction)[mask] ** 2))
    assert scores["mae"] == pytest.approx(mean_absolute_error(truth[mask], prediction[mask]))
    for axis, pairs in {
        "gene": [(truth[mask[:, g], g], prediction[mask[:, g], g]) for g in range(12)],
        "spot": [(truth[i, mask[i]], prediction[i, mask[i]]) for i in range(40) if mask[i].sum() >= 5],
    }.items():
        assert scores[f"pcc_{axis}"] == pytest.approx(np.mean([np.corrcoef(t, p)[0, 1] for t, p in pairs]))
        assert scores[f"r2_{axis}"] == pytest.approx(np.mean([r2_score(t, p) for t, p in pairs]))


def test_formats_agree(entries):
    truth, prediction, mask = entries
    expected = metrics.completion_scores(truth, prediction, mask)
    spots, genes = [f"s{i}" for i in range(40)], [f"g{i}" for i in range(12)]
    frame = pd.DataFrame(prediction, spots, genes)
    assert metrics.completion_scores(sparse.csr_matrix(truth), frame, sparse.csr_matrix(mask)) == pytest.approx(
        expected
    )
    assert metrics.completion_scores(sparse.csc_array(truth), frame, pd.DataFrame(mask, spots, genes)) == pytest.approx(
        expected
    )


def test_perfect_constant_and_few():
    truth = np.arange(30.0).reshape(10, 3)
    mask = np.ones_like(truth, dtype=bool)
    perfect = metrics.completion_scores(truth, truth, mask, min_entries=3)
    assert (perfect["mse"], perfect["mae"]) == (0, 0)
    assert [perfect[key] for key in ("pcc_gene", "pcc_spot", "r2_gene", "r2_spot")] == pytest.approx([1, 1, 1, 1])
    # the gene means predict the level and no variation
    constant = metrics.completion_scores(truth, np.broadcast_to(truth.mean(axis=0), truth.shape), mask)
    assert (constant["pcc_gene"], constant["r2_gene"]) == pytest.approx((0, 0))
    # three genes are too few for a score within spots
    assert np.isnan(constant["pcc_spot"]) and np.isnan(constant["r2_spot"])
    # genes with constant truth say nothing about a prediction
    truth[:, 0] = 7
    prediction = truth.copy()
    prediction[:, 0] = np.arange(10)
    assert metrics.completion_scores(truth, prediction, mask)["pcc_gene"] == pytest.approx(1)


def test_bad_input_is_named(entries):
    truth, prediction, mask = entries
    with pytest.raises(ValueError, match=r"prediction has shape \(40, 11\) and truth \(40, 12\)"):
        metrics.completion_scores(truth, prediction[:, :11], mask)
    with pytest.raises(ValueError, match="expected bool"):
        metrics.completion_scores(truth, prediction, mask.astype(int))
    with pytest.raises(ValueError, match="no entry to score"):
        metrics.completion_scores(truth, prediction, np.zeros_like(mask))
    prediction[np.nonzero(mask)[0][:3], np.nonzero(mask)[1][:3]] = np.nan
    with pytest.raises(ValueError, match=f"3 of {mask.sum()} scored entries of prediction are NaN"):
        metrics.completion_scores(truth, prediction, mask)
    frame = pd.DataFrame(truth)
    with pytest.raises(ValueError, match="the genes of prediction and truth differ"):
        metrics.completion_scores(frame, frame.iloc[:, ::-1], mask)


def test_nan_outside_the_mask_is_ignored(entries):
    truth, prediction, mask = entries
    expected = metrics.completion_scores(truth, prediction, mask)
    assert metrics.completion_scores(truth, np.where(mask, prediction, np.nan), mask) == expected


def test_variance_ratio(entries):
    truth, _, mask = entries
    mean = truth.mean(axis=0)
    np.testing.assert_allclose(metrics.variance_ratio(truth, mean + 0.5 * (truth - mean)), 0.25)
    some = metrics.variance_ratio(truth, 2 * truth, mask)
    np.testing.assert_allclose(some, 4)
    truth[:, 3] = 1
    ratio = metrics.variance_ratio(truth, truth)
    assert np.isnan(ratio[3]) and np.allclose(np.delete(ratio, 3), 1)
