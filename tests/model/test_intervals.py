from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi.model._predictive import CountPredictive, NormalPredictive, conformal_levels


@pytest.fixture(params=["trained", "captured"])
def model(request) -> LGDiST:
    return request.getfixturevalue(request.param)


def test_shapes_names_and_order(model, tissue):
    genes = list(tissue.var_names[[4, 0]])
    lower, upper = model.get_prediction_interval(0.8, indices=[9, 2], gene_list=genes)
    for end in (lower, upper):
        assert list(end.columns) == genes
        assert list(end.index) == list(tissue.obs_names[[9, 2]])
    lower, upper = model.get_prediction_interval(0.8, return_numpy=True)
    assert lower.shape == upper.shape == tissue.shape
    assert (lower <= upper).all()
    assert np.isfinite(lower).all()
    assert np.isfinite(upper).all()
    assert (lower >= 0).all()


def test_a_higher_level_is_wider(model):
    ends = [
        model.get_prediction_interval(level, observed="model", return_numpy=True) for level in (0.2, 0.5, 0.8, 0.95)
    ]
    for (lower, upper), (next_lower, next_upper) in zip(ends[:-1], ends[1:], strict=True):
        assert (next_lower <= lower).all()
        assert (next_upper >= upper).all()
        assert (next_upper - next_lower).mean() > (upper - lower).mean()


def test_kept_entries_have_width_zero(model, cp10k):
    adata = model.adata
    kept = np.asarray(adata.layers["known"]) & (adata.X.toarray() > 0)
    lower, upper = model.get_prediction_interval(0.9, return_numpy=True)
    np.testing.assert_array_equal(lower[kept], cp10k(adata)[kept])
    np.testing.assert_array_equal(upper[kept], cp10k(adata)[kept])
    _, masked = model.get_prediction_interval(0.9, fill="masked", return_numpy=True)
    np.testing.assert_array_equal(
        masked[np.asarray(adata.layers["known"])], cp10k(adata)[np.asarray(adata.layers["known"])]
    )
    lower, upper = model.get_prediction_interval(0.9, observed="model", return_numpy=True)
    assert (upper > lower)[kept].mean() > 0.9


@pytest.mark.parametrize(
    "likelihood",
    [
        "nb",
        pytest.param(
            "normal",
            marks=pytest.mark.xfail(
                strict=False, reason="captured values: 0.85 covered of 0.9 where hiding changes small libraries (known fault)"
            ),
        ),
    ],
)
def test_intervals_cover_entries_that_were_held_out(fit, likelihood):
    """Entries hidden before training are inside as often as promised."""
    adata = datasets.simulated_visium(n_spots=400, n_genes=50, seed=2)
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 40].copy()
    counts = adata.X.toarray()
    hidden = np.random.default_rng(3).random(adata.shape) < 0.1
    if likelihood == "normal":
        hidden &= counts > 0
        adata.layers["known"] = (counts > 0) & ~hidden
    else:
        adata.layers["known"] = ~hidden
    model = fit(adata, 25, {"mask_layer": "known"}, set_aside_fraction=0.1)
    library = (counts * adata.layers["known"]).sum(axis=1, keepdims=True)
    truth = np.log1p(counts / library * 1e4)
    for level in (0.5, 0.9):
        lower, upper = model.get_prediction_interval(level, return_numpy=True)
        inside = ((lower - 1e-5 <= truth) & (truth <= upper + 1e-5))[hidden].mean()
        # some 600 entries; counts are discrete: an interval that includes its ends covers more
        slack = 4 * np.sqrt(level * (1 - level) / 600)
        assert level - slack < inside < (level + slack if likelihood == "normal" else 1.0), (level, inside)


def test_the_number_of_calibration_entries_is_kept(model):
    assert all(sum(n) > 50 for n in model.calibration_["n_entries"].values())


def test_intervals_of_captured_values_start_at_one_count(trained):
    adata = trained.adata
    lower, _ = trained.get_prediction_interval(0.9, estimand="captured", observed="model", return_numpy=True)
    library = (adata.X.toarray() * np.asarray(adata.layers["known"])).sum(axis=1)
    seen = library > 0
    assert (lower[seen] >= np.log1p(1e4 / library[seen])[:, None] - 1e-4).all()
    rate_lower, _ = trained.get_prediction_interval(0.9, estimand="rate", observed="model", return_numpy=True)
    assert (rate_lower[seen] == 0).mean() > 0.5  # most counts of this slide are zero


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 90])
def test_level_out_of_range(trained, level):
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        trained.get_prediction_interval(level)


def test_an_interval_needs_two_samples(trained):
    with pytest.raises(ValueError, match="n_samples of at least 2"):
        trained.get_prediction_interval(0.9, n_samples=1)


# ---- the distributions behind them


@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.4), (4.0, 4.0), (30.0, 300.0)])
@pytest.mark.parametrize("captured", [False, True])
def test_count_predictive_quantiles(mean, variance, captured):
    library = np.array([[5000.0]])
    predictive = CountPredictive(np.array([[mean]]), np.array([[variance]]), library, captured)
    counts = np.arange(0, 2000)
    theta = mean**2 / max(variance - mean, 1e-12)
    pmf = (
        stats.poisson.pmf(counts, mean) if variance == mean else stats.nbinom.pmf(counts, theta, theta / (theta + mean))
    )
    if captured:
        pmf[0] = 0
    cdf = np.cumsum(pmf / pmf.sum())
    for probability in (0.05, 0.5, 0.77, 0.99):
        expected = np.log1p(counts[np.searchsorted(cdf, probability - 1e-9)] / 5000 * 1e4)
        np.testing.assert_allclose(predictive.quantile(np.array([[probability]])), expected, rtol=1e-6)


@pytest.mark.parametrize("captured", [False, True])
def test_count_predictive_rank_is_uniform_under_its_own_distribution(captured):
    n = 20_000
    rng = np.random.default_rng(0)
    mean, variance = np.full((n, 1), 2.0), np.full((n, 1), 4.0)
    counts = rng.negative_binomial(2.0, 0.5, size=(n, 1))
    predictive = CountPredictive(mean, variance, np.full((n, 1), 1000.0), captured)
    rank = predictive.mid_rank(counts, rng.random((n, 1)))
    rank = rank[counts > 0] if captured else rank.ravel()
    assert stats.kstest(rank, "uniform").pvalue > 1e-3


def test_normal_predictive():
    mean, variance = np.full((5000, 1), 3.0), np.full((5000, 1), 0.25)
    predictive = NormalPredictive(mean, variance, np.full((5000, 1), 1e4))
    np.testing.assert_allclose(predictive.quantile(0.9)[0], stats.norm.ppf(0.9, 3.0, 0.5))
    values = np.random.default_rng(0).normal(3.0, 0.5, (5000, 1)).clip(0)
    rank = predictive.mid_rank(np.expm1(values), np.zeros((5000, 1)))
    assert stats.kstest(rank.ravel(), "uniform").pvalue > 1e-3


def test_conformal_levels_cover_by_construction():
    rng = np.random.default_rng(0)
    rank = rng.beta(3, 3, 999)  # a distribution that is too wide: central intervals can be narrower
    levels = np.array([0.5, 0.9, 0.99])
    drawn = conformal_levels(rank, levels)
    covered = (np.abs(2 * rank - 1)[:, None] <= drawn).mean(axis=0)
    np.testing.assert_allclose(covered, levels, atol=2e-3)
    assert (drawn < levels).all()
    # with too few entries for a level, all that is possible is covered
    assert conformal_levels(rank[:5], np.array([0.99]))[0] == 1.0
    np.testing.assert_array_equal(conformal_levels(rank[:0], levels), levels)


def test_a_slide_without_a_mask_has_intervals_for_its_zeros(fit, slide):
    pp.spatial_neighbors(slide)
    model = fit(slide, 2)
    lower, upper = model.get_prediction_interval(0.9, return_numpy=True)
    zero = slide.X.toarray() == 0
    assert (lower[zero] <= upper[zero]).all()
    assert (upper[zero] > 0).any()
