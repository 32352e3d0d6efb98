from __future__ import annotations

import numpy as np
import pytest

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi.inference._conformal import expression_strata


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
