from __future__ import annotations

import numpy as np
import pytest
from benchmarks._methods import HOLD_OUTS, METHODS
from benchmarks._protocols import PROTOCOLS, task, too_small


def _counts(adata) -> np.ndarray:
    return adata.X.toarray()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_method_sees_no_trace_of_what_is_hidden(tissue, protocol):
    given = task(tissue, None, protocol, 0)
    assert not set(given.adata.layers) & {"truth", "held_out", "rate"}
    assert given.adata.raw is None
    assert (_counts(given.adata) <= _counts(tissue)).all()
    assert _counts(given.adata).sum() < _counts(tissue).sum()


def test_entry_hides_a_part_of_the_captured_targets(tissue):
    given = task(tissue, None, "entry", 0)
    full, left = _counts(tissue), _counts(given.adata)
    targets = tissue.var["target_gene"].to_numpy()
    gone = (full > 0) & (left == 0)
    assert gone[:, targets].sum() == round(0.3 * (full[:, targets] > 0).sum())
    assert not gone[:, ~targets].any()
    assert np.array_equal(given.scored, gone)
    assert not given.adata.layers["observed"][gone].any()
    assert np.array_equal(given.library, left.sum(axis=1))


@pytest.mark.parametrize("protocol", ["spot", "block"])
def test_hidden_spots_are_hidden_whole_and_their_depth_is_known(tissue, protocol):
    given = task(tissue, None, protocol, 0)
    left = _counts(given.adata)
    hidden = left.sum(axis=1) == 0
    assert hidden.sum() == 60
    assert np.array_equal(left[~hidden], _counts(tissue)[~hidden])
    assert not given.adata.layers["observed"][hidden].any()
    assert given.scored[hidden].any() and not given.scored[~hidden].any()
    assert not given.scored[:, ~tissue.var["target_gene"].to_numpy()].any()
    assert np.array_equal(given.library, _counts(tissue).sum(axis=1))


def test_blocks_are_connected_and_spots_are_not(tissue):
    neighbors = tissue.obsp["spatial_connectivities"]
    inside = {}
    for protocol in ("spot", "block"):
        hidden = _counts(task(tissue, None, protocol, 0).adata).sum(axis=1) == 0
        inside[protocol] = float(neighbors[hidden][:, hidden].sum() / neighbors[hidden].sum())
    assert inside["block"] > 0.6 > 0.45 > inside["spot"]


@pytest.mark.parametrize(("protocol", "share"), [("thinning", 0.5), ("shallow", 0.1)])
def test_thinning_gives_its_share_and_measures_again_as_deep(tissue, protocol, share):
    given = task(tissue, None, protocol, 0)
    assert _counts(given.adata).sum() == pytest.approx(share * _counts(tissue).sum(), rel=0.05)
    again = np.expm1(given.measured.astype(np.float64)) * given.library[:, None] / 1e4
    assert np.allclose(again, again.round(), atol=1e-3)
    assert again.sum() == pytest.approx(share * _counts(tissue).sum(), rel=0.06)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_seed_alone_decides_what_is_hidden(tissue, protocol):
    digests = [task(tissue, None, protocol, seed).fingerprint for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("protocol", HOLD_OUTS)
def test_values_are_scored_as_log1p_cp10k(tissue, protocol):
    given = task(tissue, None, protocol, 0)
    truth = np.log1p(_counts(tissue) / given.library[:, None] * 1e4)
    perfect = given.score(truth)
    assert perfect["mse"] == pytest.approx(0, abs=1e-10)
    assert perfect["excess"] == pytest.approx(-perfect["floor"]) and perfect["floor"] > 0
    assert perfect["pcc_gene"] == pytest.approx(1)
    assert given.score(truth + 0.5)["mse"] == pytest.approx(0.25)


@pytest.mark.parametrize("protocol", ["thinning", "shallow"])
def test_rates_are_scored_from_log1p_cp10k(tissue, protocol):
    given = task(tissue, None, protocol, 0)
    rate = tissue.layers["rate"]
    true = given.score(np.log1p(1e4 * rate))
    mean, _ = METHODS["gene_mean"].run(given, 0)
    means = given.score(mean)
    assert true["d2"] > 0.1
    assert means["d2"] == pytest.approx(0, abs=0.01)
    assert true["log_likelihood"] > means["log_likelihood"]
    assert given.score(np.log1p(rate))["d2"] < 0  # not in CP10K


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cheap_methods_answer_where_they_say_so(tissue, protocol):
    for name in ("gene_mean", "neighbor_mean", "adaptive_median", "pca"):
        if protocol not in METHODS[name].protocols:
            continue
        prediction, model = METHODS[name].run(task(tissue, None, protocol, 0), 0)
        assert model is None
        assert prediction.shape == tissue.shape


def test_the_rule_of_size_says_why(tissue):
    assert "200 spots" in too_small(tissue, "entry")
    many = tissue[np.tile(np.arange(200), 3)].copy()
    many.obs_names_make_unique()
    assert "target genes, fewer than 64" in too_small(many, "block")
    assert "molecules per spot" in too_small(many, "shallow")
    many.X = many.X * 100
    assert too_small(many, "shallow") is None
