"""Holes dug to calibrate intervals of spots without a visible neighbour."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import datasets, pp
from lgdist_scvi.inference import holes


@pytest.fixture(scope="module")
def slides():
    """Two slides, with a graph."""
    adata = datasets.simulated_visium(n_spots=600, n_genes=40, n_samples=2, seed=0)
    pp.spatial_neighbors(adata, sample_key="sample")
    return adata


def test_each_middle_lies_in_the_middle_of_one_hole(slides):
    graph = sparse.csr_matrix(slides.obsp["spatial_connectivities"])
    samples = (slides.obs["sample"] == slides.obs["sample"].iloc[-1]).to_numpy().astype(int)
    visible = np.ones(slides.n_obs, dtype=bool)
    spots = np.random.default_rng(0).permutation(slides.n_obs)[:24]
    seen, sizes = [], []
    for middles, hidden in holes(graph, spots, samples, visible):
        seen += middles.tolist()
        left = visible.copy()
        left[hidden] = False
        assert not left[graph[middles].indices].any()
        assert 0 < len(hidden) < 0.5 * slides.n_obs
        assert min(np.bincount(samples[left])) >= 0.5 * min(np.bincount(samples))
        sizes.append(len(hidden) / len(middles))
    assert sorted(seen) == sorted(spots.tolist())
    assert max(sizes) > 2 * min(sizes)


def test_holes_leave_half_of_what_is_visible_of_a_slide():
    chain = sparse.diags([np.ones(9)] * 2, [-1, 1], format="csr")
    visible = np.zeros(10, dtype=bool)
    visible[:3] = True
    assert not list(holes(chain, np.array([1]), np.zeros(10, dtype=int), visible))
    assert len(list(holes(chain, np.array([7]), np.zeros(10, dtype=int), visible))) == 1


@pytest.fixture(scope="module")
def deep():
    """A slide so deep and smooth that neighbours tell much, and farther spots less."""
    adata = datasets.simulated_visium(n_spots=900, n_genes=40, seed=0)
    counts = np.random.default_rng(0).poisson(2000 * adata.layers["rate"])
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    return adata


@pytest.fixture(scope="module", params=["captured", "rate"])
def model(request, fit, deep):
    """A block of spots is hidden, and every zero or no other entry."""
    hidden = pp.hold_out(deep, 0.2, "block", n_blocks=1, library_keys=())
    pp.spatial_neighbors(hidden)
    hidden.obs["depth"] = np.asarray(deep.X.sum(axis=1)).ravel()
    pp.observed_mask(hidden)
    if request.param == "rate":
        hidden.layers["observed"] = ~hidden.layers["held_out"]
        hidden.layers["observed"][np.flatnonzero(~hidden.layers["held_out"].any(axis=1))[:5], 0] = False
    return fit(hidden, 40, {"mask_layer": "observed", "size_factor_key": "depth"})


@pytest.fixture(scope="module")
def within(model) -> np.ndarray:
    """Which spots are hidden."""
    return model.adata.layers["held_out"].all(axis=1)


@pytest.fixture(scope="module")
def far(model) -> np.ndarray:
    """Which spots have no visible neighbour."""
    return model.adata_manager.create_torch_dataset().far


def test_intervals_are_wider_where_no_neighbour_is_visible(model, within, far, monkeypatch):
    kinds, modelled = model.calibration_.kinds, model.module.likelihood.modelled
    assert sum(kinds["holes"].intervals.n_entries[modelled]) > 100
    assert 10 < (far & within).sum() < within.sum()
    lower, upper = model.get_prediction_interval(0.9, observed="model", return_numpy=True)
    width = (upper - lower).mean(axis=1)
    assert width[within & far].mean() > width[within & ~far].mean()
    # the reach of holes is used there, and nowhere else
    monkeypatch.setitem(kinds, "holes", kinds["hidden_spots"])
    again = model.get_prediction_interval(0.9, observed="model", return_numpy=True)[1]
    changed = (again != upper).any(axis=1)
    assert changed[within & far].any() and not changed[~(within & far)].any()


def test_the_standard_deviation_of_hidden_spots_is_of_the_size_of_the_error(model, deep, within, far):
    truth = np.log1p(1e4 * deep.layers["rate"])
    predicted, spread = model.get_completed_expression(observed="model", return_std=True, return_numpy=True)
    for spots in (within & far, within & ~far):
        error = np.sqrt(((truth - predicted)[spots] ** 2).mean())
        claimed = np.sqrt((spread[spots] ** 2).mean())
        assert 0.6 * error < claimed < 1.6 * error


def test_each_kind_of_entry_has_its_own_factor(model, within, far, monkeypatch):
    arguments = {"observed": "model", "return_std": True, "return_numpy": True}
    _, before = model.get_completed_expression(**arguments)
    known = model.adata.layers["observed"]
    within, far = (np.broadcast_to(spots[:, None], known.shape) for spots in (within, far))
    entries = {"visible": known, "hidden": ~known & ~within, "hidden_spots": within & ~far, "holes": within & far}
    if "split" not in model.module.likelihood.hold_outs:  # those of hidden entries stand in for visible ones
        entries["hidden"] = entries["hidden"] | entries.pop("visible")
    kinds = model.calibration_.kinds
    assert kinds.keys() == entries.keys()
    for kind, where in entries.items():
        assert where.any(), kind
        with monkeypatch.context() as patch:
            patch.setattr(kinds[kind], "std_factor", 2 * kinds[kind].std_factor)
            _, after = model.get_completed_expression(**arguments)
        np.testing.assert_allclose(after, np.where(where, 2, 1) * before, rtol=1e-5)
