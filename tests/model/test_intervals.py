from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi.inference._calibration import _moments, _signal
from lgdist_scvi.inference._conformal import calibrate, conformal_quantiles, expression_strata, nested_strata
from lgdist_scvi.module.likelihood._predictive import CountPredictive, NormalPredictive


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


LEVELS = (0.5, 0.8, 0.9, 0.95)


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
@pytest.mark.parametrize(("epochs", "hidden_share"), [(1, 0.4), (25, 0.1)])
def test_intervals_cover_entries_that_were_held_out(fit, likelihood, hidden_share, epochs):
    """Entries hidden before training are inside as often as promised, even by a model that has hardly been trained.

    On a small panel a hidden count is a noticeable part of its spot's library.
    """
    adata = datasets.simulated_visium(n_spots=400, n_genes=50, seed=2)
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 40].copy()
    counts = adata.X.toarray()
    hidden = np.random.default_rng(3).random(adata.shape) < hidden_share
    if likelihood == "normal":
        hidden &= counts > 0
        adata.layers["known"] = (counts > 0) & ~hidden
    else:
        adata.layers["known"] = ~hidden
    model = fit(adata, epochs, {"mask_layer": "known"}, set_aside_fraction=0.2)
    library = (counts * adata.layers["known"]).sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        truth = np.log1p(counts / library * 1e4)
    third = expression_strata(model.module.likelihood.expression.numpy())
    for estimand in ("captured",) if likelihood == "normal" else ("rate", "captured"):
        scored = hidden & (library > 0) & ((counts > 0) if estimand == "captured" else True)
        for level in LEVELS:
            lower, upper = model.get_prediction_interval(level, estimand=estimand, observed="model", return_numpy=True)
            inside = (lower <= truth) & (truth <= upper)
            for genes in (third >= 0, third == 0, third == 1, third == 2):
                entries = scored & genes
                n_calibration = sum(np.array(model.calibration_.hidden.n_entries[estimand])[np.unique(third[genes])])
                slack = 3.5 * np.sqrt(level * (1 - level) * (1 / entries.sum() + 1 / n_calibration))
                low, high = level - slack, level + slack
                assert low < inside[entries].mean(), (estimand, level, entries.sum(), n_calibration)
                # more only where the narrowest intervals, of the median alone, cover more
                narrowest = (upper[entries] <= lower[entries] * (1 + 1e-5)).mean()
                assert inside[entries].mean() < high or narrowest > 0.3, (estimand, level)


def test_hidden_spots_have_a_calibration_of_their_own(fit):
    """Of a spot that is hidden whole less is known; its intervals are as much wider as it takes."""
    adata = datasets.simulated_visium(n_spots=800, n_genes=50, seed=2)
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 40].copy()
    counts = adata.X.toarray()
    spots = np.random.default_rng(3).random(adata.n_obs) < 0.2
    adata.obs["total"] = counts.sum(axis=1)
    adata.layers["known"] = (counts > 0) & ~spots[:, None]
    model = fit(adata, 12, {"mask_layer": "known", "size_factor_key": "total"}, set_aside_fraction=0.2)
    truth = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    scored = spots[:, None] & (counts > 0)
    for level in LEVELS:
        lower, upper = model.get_prediction_interval(level, return_numpy=True)
        inside = ((lower <= truth) & (truth <= upper))[scored].mean()
        # the entries of a spot rise and fall together
        assert abs(inside - level) < 0.06, (level, inside)


def test_a_slide_too_small_to_set_a_spot_aside(fit):
    """Nothing calibrates the intervals of a hidden spot there: they hold whatever it could show."""
    adata = datasets.simulated_visium(n_spots=20, n_genes=30, seed=0)
    known = np.ones(adata.shape, dtype=bool)
    known[4] = False
    adata.layers["known"] = known
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel()
    model = next(
        model
        for seed in range(20)
        if not len(
            (
                model := fit(adata, 1, {"mask_layer": "known", "size_factor_key": "total"}, seed=seed)
            ).module.spots_set_aside(adata.n_obs)
        )
    )
    lower, upper = model.get_prediction_interval(0.5, indices=[3, 4], observed="model", return_numpy=True)
    assert np.isfinite(upper).all()
    assert (lower[1] == 0).all()
    assert (upper[1] > upper[0] + 1).all()


def test_the_ends_hold_a_value_however_it_was_rounded(trained, tissue):
    """Counts are discrete: the measured value often is the end itself."""
    library = (tissue.X.toarray() * tissue.layers["known"]).sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        single, double = (
            np.log1p(counts / library.astype(counts.dtype) * counts.dtype.type(1e4))
            for counts in (np.ones(tissue.shape, np.float32), np.ones(tissue.shape, np.float64))
        )
    lower, upper = trained.get_prediction_interval(0.5, observed="model", estimand="captured", return_numpy=True)
    for end in (lower, upper):
        near = np.isclose(end, double, rtol=1e-5)
        assert near.sum() > 100
    for value in (single, double):
        assert (lower <= value)[np.isclose(lower, double, rtol=1e-5)].all()
        assert (upper >= value)[np.isclose(upper, double, rtol=1e-5)].all()


def test_the_number_of_calibration_entries_is_kept(model):
    assert all(sum(n) > 50 for n in model.calibration_.hidden.n_entries.values())


def test_intervals_of_captured_values_start_at_one_count(trained):
    adata = trained.adata
    lower, _ = trained.get_prediction_interval(0.9, estimand="captured", observed="model", return_numpy=True)
    library = (adata.X.toarray() * np.asarray(adata.layers["known"])).sum(axis=1)
    seen = library > 0
    assert (lower[seen] >= np.log1p(1e4 / library[seen])[:, None] - 1e-4).all()
    rate_lower, _ = trained.get_prediction_interval(0.9, estimand="rate", observed="model", return_numpy=True)
    assert (rate_lower[seen] == 0).mean() > 0.5  # most counts of this slide are zero


@pytest.mark.parametrize("level", [0.0, 0.99995, 1.0, -0.5, 90])
def test_level_out_of_range(trained, level):
    with pytest.raises(ValueError, match="level must lie between 0 and 0.9999"):
        trained.get_prediction_interval(level)


def test_an_interval_needs_two_samples(trained):
    with pytest.raises(ValueError, match="n_samples of at least 2"):
        trained.get_prediction_interval(0.9, n_samples=1)


# ---- the distributions behind them


@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.4), (4.0, 4.0), (30.0, 300.0)])
@pytest.mark.parametrize("captured", [False, True])
def test_count_predictive_probabilities(mean, variance, captured):
    counts = np.arange(0, 2000)
    theta = mean**2 / max(variance - mean, 1e-12)
    pmf = (
        stats.poisson.pmf(counts, mean) if variance == mean else stats.nbinom.pmf(counts, theta, theta / (theta + mean))
    )
    if captured:
        pmf[0] = 0
    pmf /= pmf.sum()
    shape = (1, len(counts))
    predictive = CountPredictive(np.full(shape, mean), np.full(shape, variance), np.array([[5000.0]]), captured)
    asked = counts[None, int(captured) :]
    np.testing.assert_allclose(predictive.at_most(counts[None])[:, int(captured) :], np.cumsum(pmf)[asked], atol=1e-7)
    expected = np.cumsum(pmf[::-1])[::-1]
    np.testing.assert_allclose(predictive.at_least(counts[None])[:, int(captured) :], expected[asked], atol=1e-7)
    # the smallest range with no more than the tail on either side
    for tail in (0.4, 0.1, 0.01):
        deviation = -stats.norm.ppf(tail)
        lower, upper = (np.expm1(end[0, 0]) * 5000 / 1e4 for end in predictive.interval(np.array([deviation])))
        inside = counts[(np.cumsum(pmf) >= tail) & (expected > tail)]
        assert (round(lower), round(upper)) == (inside[0], inside[-1])


def _predictives():
    rng = np.random.default_rng(0)
    mean, library = np.exp(rng.normal(0, 2, (400, 20))), rng.uniform(100, 9000, (400, 1))
    for captured in (False, True):
        yield CountPredictive(mean, mean + 0.3 * mean**2, library, captured)
    yield NormalPredictive(np.log1p(mean / library * 1e4), np.full(mean.shape, 0.4), library)


@pytest.mark.parametrize("predictive", list(_predictives()), ids=["counts", "captured counts", "captured values"])
def test_a_count_lies_in_the_interval_of_its_score_and_in_no_narrower_one(predictive):
    least = 0 if isinstance(predictive, CountPredictive) and not predictive.captured else 1
    counts = np.maximum(np.random.default_rng(1).poisson(3, predictive.mean.shape), least)
    score = predictive.score(counts)
    values = np.log1p(counts / predictive.library * 1e4)
    lower, upper = predictive.interval(score)
    assert ((lower <= values) & (values <= upper)).all()
    lower, upper = predictive.interval(np.maximum(score - 1e-3, 0.0))
    assert not ((lower <= values) & (values <= upper))[score > 1e-3].any()
    # the narrowest is a single count, and all ends are values of counts
    lower, upper = (np.expm1(end.astype(float)) * predictive.library / 1e4 for end in predictive.interval(np.zeros(20)))
    np.testing.assert_allclose(lower, upper, rtol=1e-3, atol=1e-3)
    for end in predictive.interval(np.full(20, 1.3)):
        count = np.expm1(end.astype(float)) * predictive.library / 1e4
        np.testing.assert_allclose(count, np.round(count), rtol=1e-3, atol=1e-3)
        assert (np.round(count) >= least).all()


@pytest.mark.parametrize("predictive", list(_predictives()), ids=["counts", "captured counts", "captured values"])
def test_single_entries_are_scored_as_among_all(predictive):
    counts = np.random.default_rng(1).poisson(3, predictive.mean.shape) + 1
    rows, genes = np.nonzero(np.random.default_rng(2).random(counts.shape) < 0.1)
    score = predictive.of_entries(rows, genes).score(counts[rows, genes])
    np.testing.assert_array_equal(score, predictive.score(counts)[rows, genes])


def test_the_widest_interval_is_finite():
    for predictive in _predictives():
        lower, upper = predictive.interval(np.array([1e9]))
        assert np.isfinite(lower).all()
        assert np.isfinite(upper).all()
        assert (upper > lower).all()


def test_conformal_quantiles_have_the_finite_sample_correction():
    score = np.random.default_rng(0).permutation(
        9.0 + np.arange(9)
    )  # 9 scores cut the line into 10 equally likely parts
    np.testing.assert_array_equal(conformal_quantiles(score, np.array([0.1, 0.45, 0.5, 0.9])), [9, 13, 13, 17])
    assert conformal_quantiles(score, np.array([0.91]))[0] > 1e5
    assert conformal_quantiles(score[:0], np.array([0.5]))[0] > 1e5


def test_calibration_covers_new_entries_of_every_stratum():
    """Genes differ in how badly they are predicted, and half of them have few entries."""
    rng = np.random.default_rng(0)
    n_genes = 60
    rate, badness = rng.random(n_genes), np.exp(rng.normal(0, 0.7, n_genes))

    def entries(n):
        gene = rng.integers(n_genes, size=n)
        gene = np.where((gene % 2 == 0) & (rng.random(n) < 0.8), np.minimum(gene + 1, n_genes - 1), gene)
        return {"rate": (np.abs(rng.normal(size=n)) * badness[gene], gene, rng.integers(100, size=n))}

    calibration = calibrate(entries(40_000), rate, rng.random(n_genes))
    assert sum(calibration.n_entries["rate"]) == 40_000
    assert calibration.stratum["rate"].max() > 14
    deviation, gene, _ = entries(200_000)["rate"]
    third = expression_strata(rate)
    for row, level in zip(calibration.coverage["rate"], LEVELS, strict=True):
        inside = deviation <= calibration.reach("rate", level)[gene]
        found = [inside.mean(), *(inside[third[gene] == t].mean() for t in range(3))]
        np.testing.assert_allclose(found, level, atol=0.02)
        np.testing.assert_allclose(row, level, atol=0.02)


def test_levels_near_one_are_calibrated_where_entries_allow_it():
    deviation = np.abs(np.random.default_rng(0).normal(size=150_000))
    gene = np.arange(150_000) % 3
    calibration = calibrate({"rate": (deviation, gene, gene)}, np.arange(3.0), np.ones(3))
    for level in (0.997, 0.9985, 0.9995):
        found = (deviation <= calibration.reach("rate", level)[gene]).mean()
        assert found == pytest.approx(level, abs=2e-4)


def test_genes_with_much_and_with_little_signal_are_calibrated_apart():
    """Of genes of like expression, those that vary over the tissue are predicted worse, or better, than the model claims."""
    rng = np.random.default_rng(0)
    n_genes = 300
    rate, varies = rng.random(n_genes), rng.random(n_genes) < 0.5
    badness = np.where(varies, 2.0, 1.0)

    def entries(n):
        gene = rng.integers(n_genes, size=n)
        return np.abs(rng.normal(size=n)) * badness[gene], gene

    deviation, gene = entries(30_000)
    calibration = calibrate({"rate": (deviation, gene, gene)}, rate, varies + 0.1 * rng.random(n_genes))
    deviation, gene = entries(100_000)
    for level in LEVELS:
        inside = deviation <= calibration.reach("rate", level)[gene]
        # where one group of genes has more of one kind than of the other, some of them are judged with the other kind
        assert inside[varies[gene]].mean() == pytest.approx(level, abs=0.06)
        assert inside[~varies[gene]].mean() == pytest.approx(level, abs=0.06)
        assert inside.mean() == pytest.approx(level, abs=0.01)


def test_signal_is_what_predictions_differ_by():
    """Relative to the predictive variance, whatever the batches."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(500, 3)) * np.array([0.0, 1.0, 3.0]) + 5.0
    parts = [_moments(part, np.full(part.shape, 4.0)) for part in (mean[:100], mean[100:])]
    np.testing.assert_allclose(_signal(parts, 3), mean.var(axis=0) / 4.0, atol=1e-9)
    np.testing.assert_array_equal(_signal([], 3), np.zeros(3))


def test_strata_are_parts_of_thirds():
    rng, rate = np.random.default_rng(0), np.random.default_rng(0).random(100)
    signal = rng.random(100)
    for n_entries, expected in ((0, 3), (4_000, 12), (1_000_000, 99)):
        stratum = nested_strata(rate, signal, rng.integers(100, size=n_entries))
        assert abs(stratum.max() + 1 - expected) <= 3
        np.testing.assert_array_equal(np.unique(stratum), np.arange(stratum.max() + 1))
        for third in range(2):
            below, above = (stratum[expression_strata(rate) == t] for t in (third, third + 1))
            assert below.max() < above.min()
    assert nested_strata(rate[:4], signal[:4], np.zeros(10_000, dtype=int)).max() == 2
    # genes that do not differ in signal are cut by expression alone
    stratum = nested_strata(rate, np.ones(100), rng.integers(100, size=10_000))
    assert (np.diff(stratum[np.argsort(rate)]) >= 0).all()


def test_strata_hold_equal_numbers_of_entries_not_of_genes():
    """The few genes that make up most captured values are not judged by each other."""
    rate, signal = np.arange(90.0), np.random.default_rng(1).random(90)
    n_entries = np.repeat([10, 600], [80, 10])
    stratum = nested_strata(rate, signal, np.repeat(np.arange(90), n_entries))
    assert len(set(stratum[80:])) == 10
    assert len(set(stratum[:80])) <= 4
    # no stratum is left with too few for high levels
    n_entries = np.random.default_rng(0).choice([5, 490, 700], 90)
    held = np.bincount(nested_strata(rate, signal, np.repeat(np.arange(90), n_entries)), weights=n_entries)
    assert held.min() >= 250


def test_a_slide_without_a_mask_has_intervals_for_its_zeros(fit, slide):
    pp.spatial_neighbors(slide)
    model = fit(slide, 2)
    lower, upper = model.get_prediction_interval(0.9, return_numpy=True)
    zero = slide.X.toarray() == 0
    assert (lower[zero] <= upper[zero]).all()
    assert (upper[zero] > 0).any()


def test_strata_go_by_what_is_modelled(trained, captured):
    """Captured values are alike where they are alike in size, however rare they are."""
    for model, expression in (
        (trained, trained.module.likelihood.gene_rate),
        (captured, captured.module.likelihood.value_mean),
    ):
        stratum = model.calibration_.hidden.stratum[model.module.likelihood.modelled]
        assert stratum.max() > 1
        third = expression_strata(expression.numpy())
        for one in range(2):
            assert stratum[third == one].max() < stratum[third == one + 1].min()
