"""Region effects: residuals of each gene over slides and over the surroundings of spots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi import LGDiST, datasets, metrics, pp
from lgdist_scvi.data import Surroundings
from lgdist_scvi.inference import (
    EstimatedEffects,
    HeldOutEntries,
    KeptEvidence,
    RegionEffects,
    choose_shrinkage,
    estimate_region_effects,
)
from lgdist_scvi.module.likelihood import CapturedLikelihood, PoissonLikelihood

N, GENES = 400, 30
FACTOR, SUMMAND = PoissonLikelihood.region_effect, CapturedLikelihood.region_effect


def effects_of(found, expected, kind=FACTOR):
    """Two slides of 200 spots each on a line, of neighbours that follow each other."""
    steps = np.delete(np.arange(N - 1), N // 2 - 1)
    graph = sparse.csr_matrix((np.ones(len(steps)), (steps, steps + 1)), shape=(N, N))
    coordinates = np.column_stack([np.arange(N) % (N // 2), np.zeros(N)]).astype(float)
    nearby = Surroundings(graph + graph.T, coordinates, 20)
    evidence = KeptEvidence(found.astype(np.float32), expected.astype(np.float32))
    return RegionEffects(evidence, nearby, np.arange(N) // (N // 2), kind)


def poisson_loss(counts):
    return lambda prediction: float((prediction - counts * np.log(prediction)).sum())


def chosen_for(factor, rng):
    """Shrinkage chosen on second counts, for rates that differ from those expected by a factor, and the factors found."""
    expected = rng.gamma(2.0, 1.0, (N, GENES))
    effects = effects_of(rng.poisson(expected * factor), expected)
    chosen = np.random.default_rng(9).random((N, GENES)) < 0.3
    again, held_out = rng.poisson(expected * factor), []
    for rows in np.array_split(np.arange(N), 5):  # batches
        spot, gene = np.nonzero(chosen[rows])
        place = rows[spot], gene
        held_out.append(HeldOutEntries(rows, spot, gene, expected[place], poisson_loss(again[place])))
    shrinkage = choose_shrinkage(effects, held_out)
    return shrinkage, effects.estimate(shrinkage)


def test_factors_of_slides_and_regions_are_found():
    rng = np.random.default_rng(0)
    of_slide = np.repeat(rng.lognormal(0.0, 0.4, (2, GENES)), N // 2, axis=0)
    wave = np.sin(np.arange(N) / 25.0)[:, None] * rng.normal(0.0, 0.5, GENES)
    truth = of_slide * np.exp(wave)
    shrinkage, found = chosen_for(truth, rng)
    assert np.isfinite(shrinkage).all()
    error = np.abs(np.log(found / truth)).mean()
    assert error < 0.5 * np.abs(np.log(truth)).mean()
    assert error < 0.7 * np.abs(np.log(of_slide / truth)).mean()


def test_where_there_are_no_effects_next_to_none_are_found():
    _, found = chosen_for(np.ones((N, GENES)), np.random.default_rng(1))
    assert np.abs(np.log(found)).max() < 0.05


@pytest.mark.parametrize("kind", [FACTOR, SUMMAND], ids=["factor", "summand"])
def test_a_spot_does_not_count_for_itself_and_slides_not_for_each_other(kind):
    rng = np.random.default_rng(2)
    expected = rng.gamma(2.0, 1.0, (N, GENES)) if kind is FACTOR else np.ones((N, GENES))
    found = rng.poisson(expected) * 1.0 if kind is FACTOR else rng.normal(0.0, 1.0, (N, GENES))
    other = found.copy()
    other[50, 3] += 100.0
    first, second = (effects_of(part, expected, kind).estimate(np.array([4.0, 4.0])) for part in (found, other))
    assert first[50, 3] == pytest.approx(second[50, 3], rel=1e-4)
    changed = ~np.isclose(first, second, rtol=1e-3)
    assert changed[:200, 3].sum() == 199
    assert changed.sum() == 199


@pytest.mark.parametrize("kind", [FACTOR, SUMMAND], ids=["factor", "summand"])
def test_some_spots_alone(kind):
    rng = np.random.default_rng(5)
    effects, some = effects_of(rng.poisson(2.0, (N, GENES)), np.full((N, GENES), 2.0), kind), np.array([3, 250, 251])
    shrinkage = np.array([16.0, 4.0])
    np.testing.assert_array_equal(EstimatedEffects(effects, shrinkage)[some], effects.estimate(shrinkage)[some])


@pytest.mark.parametrize("kind", [FACTOR, SUMMAND], ids=["factor", "summand"])
def test_spots_that_are_left_out(kind):
    rng = np.random.default_rng(3)
    expected = rng.gamma(2.0, 1.0, (N, GENES))
    found = rng.poisson(expected) * 1.0
    out = np.array([7, 60, 399])
    left = np.ones((N, 1))
    left[out] = 0.0
    others, shrinkage = np.delete(np.arange(N), out), np.array([16.0, 4.0])
    effects = effects_of(found, expected, kind)
    without = effects.without(out).estimate(shrinkage)[others]
    blank = effects_of(found * left, expected * left, kind)
    np.testing.assert_allclose(without, blank.estimate(shrinkage)[others], rtol=1e-5, atol=1e-6)
    assert not np.allclose(without, effects.estimate(shrinkage)[others], rtol=1e-3, atol=1e-3)


def test_summands_are_shrunk_means():
    rng = np.random.default_rng(4)
    above = rng.normal(0.3, 1.0, (N, GENES))
    visible = rng.random((N, GENES)) < 0.5
    found = effects_of(above * visible, visible, SUMMAND).estimate(np.array([5.0, np.inf]))
    others = np.arange(N // 2) != 10
    seen = visible[: N // 2][others]
    expected = (above[: N // 2][others] * seen).sum(0) / (seen.sum(0) + 5.0)
    np.testing.assert_allclose(found[10], expected, rtol=1e-4)


@pytest.fixture(scope="module")
def two_slides():
    """Two slides of the same tissue, on one of which half of the genes are caught half as often; half of the molecules."""
    adata = datasets.simulated_visium(n_spots=300, n_genes=60, n_samples=2, seed=3)
    rng = np.random.default_rng(0)
    caught = np.ones(adata.shape)
    second = (adata.obs["sample"] == adata.obs["sample"].iloc[-1]).to_numpy()
    caught[np.ix_(second, np.arange(60) % 2 == 0)] = 0.4
    counts = rng.binomial(adata.X.toarray().astype(int), caught)
    given = rng.binomial(counts, 0.5)
    adata.X = sparse.csr_matrix(given.astype(np.float32))
    pp.spatial_neighbors(adata, sample_key="sample")
    return adata, counts - given


def test_what_a_slide_catches_less_of_is_expected_less(fit, two_slides):
    adata, rest = two_slides
    model = fit(adata.copy(), 4, {"sample_key": "sample"})
    assert torch.isfinite(model.module.region_shrinkage[0])
    library = adata.X.toarray().sum(1)
    with_regions = np.expm1(model.get_completed_expression(observed="model", return_numpy=True)) / 1e4
    model.module.region_shrinkage.fill_(np.inf)
    without = np.expm1(model.get_completed_expression(observed="model", return_numpy=True)) / 1e4
    scores = [metrics.poisson_deviance_explained(rest, rate, library) for rate in (with_regions, without)]
    assert scores[0] > scores[1] + 0.005


def test_effects_are_kept_for_the_same_counts_only(fit, two_slides, monkeypatch):
    adata = two_slides[0].copy()
    model = fit(adata, 2, {"sample_key": "sample"})
    estimated = []

    def counted(*args):
        estimated.append(args)
        return estimate_region_effects(*args)

    monkeypatch.setattr("lgdist_scvi.model.base._predictor.estimate_region_effects", counted)
    first = model.get_completed_expression(observed="model", return_numpy=True)  # training leaves them
    model.get_completed_expression(observed="model", return_numpy=True)
    assert not estimated
    other = adata.copy()
    other.X = other.X[::-1].copy()
    second = model.get_completed_expression(other, observed="model", return_numpy=True)
    assert len(estimated) == 1
    assert not np.allclose(first, second)


def test_saved_and_loaded(fit, two_slides, tmp_path):
    model = fit(two_slides[0].copy(), 2, {"sample_key": "sample"})
    assert torch.isfinite(model.module.region_shrinkage).any()
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=two_slides[0].copy())
    np.testing.assert_array_equal(
        *(each.get_completed_expression(observed="model", return_numpy=True) for each in (model, loaded))
    )
