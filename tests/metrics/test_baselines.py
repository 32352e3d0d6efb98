from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import lgdist_scvi
from lgdist_scvi import metrics, pp
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.metrics import baselines
from lgdist_scvi.metrics.baselines._baseline import baseline
from lgdist_scvi.metrics.baselines._data import LogData
from lgdist_scvi.metrics.baselines._low_rank import _PATH, _soft_impute
from lgdist_scvi.metrics.baselines._ridge import _ridge

if TYPE_CHECKING:
    from pathlib import Path

MASKED = ("gene_mean", "neighbor_mean", "adaptive_median", "knn", "ridge", "soft_impute")
RATE = ("gene_mean", "neighbor_mean", "knn", "soft_impute", "pca", "poisson_nmf")


@pytest.fixture(scope="module")
def hidden() -> AnnData:
    """A slide of which non-zero entries are hidden; zeros are missing."""
    adata = lgdist_scvi.datasets.simulated_visium(n_spots=300, n_genes=80, seed=0)
    pp.spatial_neighbors(adata)
    adata = pp.hold_out(adata, fraction=0.2, seed=0)
    pp.observed_mask(adata)
    return adata


@pytest.fixture(scope="module")
def thinned() -> AnnData:
    """A slide with half of its molecules."""
    adata = lgdist_scvi.datasets.simulated_visium(n_spots=300, n_genes=80, seed=0)
    pp.spatial_neighbors(adata)
    return pp.hold_out(adata, fraction=0.5, scheme="thinning", seed=0)


def _line(counts: np.ndarray) -> AnnData:
    """Spots in a row, each the neighbour of the next."""
    n_obs = len(counts)
    chain = sparse.diags([np.ones(n_obs - 1)] * 2, [-1, 1], format="csr")
    return AnnData(counts.astype(np.float32), obsp={"spatial_connectivities": chain})


@pytest.mark.parametrize("name", MASKED)
def test_hidden_values_change_no_bit(hidden, name):
    adata = hidden.copy()
    rng = np.random.default_rng(1)
    counts = adata.X.toarray()
    missing = ~adata.layers["observed"]
    counts[missing] = rng.integers(0, 500, missing.sum())
    adata.X = counts
    options = {"mask_layer": "observed", "genes": adata.var_names[:20]}
    expected = getattr(baselines, name)(hidden, **options)
    np.testing.assert_array_equal(getattr(baselines, name)(adata, **options), expected)
    assert expected.dtype == np.float32 and expected.shape == adata.shape
    assert np.isfinite(expected[:, :20]).all() and np.isnan(expected[:, 20:]).all()


@pytest.mark.parametrize("name", RATE)
def test_rates_ignore_every_layer(thinned, name):
    expected = getattr(baselines, name)(thinned)
    adata = thinned.copy()
    adata.layers["truth"] = adata.layers["truth"] * 3
    adata.X = adata.X.toarray()
    np.testing.assert_array_equal(getattr(baselines, name)(adata), expected)
    assert expected.dtype == np.float32 and np.isfinite(expected).all() and (expected >= 0).all()


def test_order_of_merit_with_missing_entries(hidden):
    truth = log1p_cp10k(hidden.layers["truth"], np.asarray(hidden.X.sum(axis=1)).ravel())
    held_out = hidden.layers["held_out"]
    mse = {
        name: metrics.completion_scores(truth, getattr(baselines, name)(hidden, mask_layer="observed"), held_out)["mse"]
        for name in MASKED
    }
    assert max(mse["neighbor_mean"], mse["knn"], mse["ridge"], mse["soft_impute"]) < mse["gene_mean"]
    assert mse["gene_mean"] < mse["adaptive_median"]  # zeros in its windows pull it down


def test_order_of_merit_where_zeros_are_data(thinned):
    other = thinned.layers["truth"] - thinned.X
    gene_mean = np.asarray(thinned.X.sum(axis=0)).ravel() / thinned.X.sum()
    d2 = {}
    for name in RATE:
        rate = np.expm1(getattr(baselines, name)(thinned).astype(np.float64)) / 1e4
        d2[name] = metrics.poisson_deviance_explained(other, rate, gene_mean=gene_mean)
    assert d2.pop("gene_mean") == pytest.approx(0, abs=1e-3)
    assert min(d2.values()) > 0.02
    assert max(d2["pca"], d2["poisson_nmf"], d2["soft_impute"]) > d2["neighbor_mean"]


def test_gene_mean_by_hand():
    adata = _line(np.array([[1, 3], [2, 0], [4, 4]]))
    pp.observed_mask(adata)
    adata.obs["library"] = [10.0, 20.0, 40.0]
    got = baselines.gene_mean(adata, mask_layer="observed", size_factor_key="library")
    expected = [np.log1p([1000, 1000, 1000]).mean(), np.log1p([3000, 1000]).mean()]
    np.testing.assert_allclose(got, np.tile(expected, (3, 1)), rtol=1e-6)
    rate = baselines.gene_mean(adata, size_factor_key="library")
    np.testing.assert_allclose(rate, np.tile(np.log1p(1e4 * np.array([7, 7]) / 70), (3, 1)), rtol=1e-6)


def test_neighbor_mean_by_hand():
    adata = _line(np.array([[1, 3], [2, 0], [4, 4]]))
    pp.observed_mask(adata)
    adata.obs["library"] = [10.0, 20.0, 40.0]
    options = {"size_factor_key": "library", "shrinkage": 2.0, "n_nearest": 1}
    mean = np.log1p([3000, 1000]).mean()
    got = baselines.neighbor_mean(adata, mask_layer="observed", **options)
    # the neighbours' observed values and twice the gene mean, never the spot itself
    assert got[1, 1] == pytest.approx((np.log1p(3000) + np.log1p(1000) + 2 * mean) / 4)
    assert got[0, 1] == pytest.approx(mean)
    rate = baselines.neighbor_mean(adata, **options)
    # counts are pooled with the spot's own, which are evidence
    assert rate[0, 1] == pytest.approx(np.log1p(1e4 * (3 + 0 + 2 * 0.1) / (10 + 20 + 2)))


def test_neighbor_mean_reaches_the_rim_of_a_hole():
    adata = _line(np.array([[8], [4], [0], [0], [0], [0], [1]]))
    pp.observed_mask(adata)
    adata.obs["library"] = 10.0
    options = {"mask_layer": "observed", "size_factor_key": "library", "shrinkage": 1e-9}
    one, two = (baselines.neighbor_mean(adata, n_nearest=n, **options)[:, 0] for n in (1, 2))
    values = np.log1p([8000, 4000, 1000])
    # each spot's nearest observed ones; the spot itself never counts
    np.testing.assert_allclose(one[:6], values[[1, 0, 1, 1, 2, 2]], rtol=1e-5)
    np.testing.assert_allclose(one[6], values[1], rtol=1e-5)
    np.testing.assert_allclose(two[[2, 6]], [values[:2].mean()] * 2, rtol=1e-5)
    np.testing.assert_allclose(two[4], values[1:].mean(), rtol=1e-5)
    rate = baselines.neighbor_mean(adata, size_factor_key="library", shrinkage=1e-9, n_nearest=2)
    # where zeros are data every spot is observed, its own counts with them
    np.testing.assert_allclose(rate[:2, 0], np.log1p([1e4 * 12 / 30, 1e4 * 12 / 30]), rtol=1e-5)


def test_hyper_parameters_are_chosen_on_whole_spots_where_whole_spots_are_missing():
    values = np.random.default_rng(0).random((200, 10)).astype(np.float32)
    mask = np.ones(values.shape, dtype=bool)
    mask[:20] = False
    fit, error = LogData(np.where(mask, values, 0), mask, np.arange(4)).split(0)
    hidden = mask & ~fit.mask
    assert hidden.all(axis=1).sum() == 18 and hidden.any(axis=1).sum() == 18
    assert error(values[:, :4]) == 0 and error(values[:, :4] + 1) == pytest.approx(1)
    mask[:20] = True
    mask[:5] = False  # a few empty spots are on every slide
    fit, _ = LogData(np.where(mask, values, 0), mask, np.arange(4)).split(0)
    assert (mask & ~fit.mask).sum() == 78 and not (mask & ~fit.mask)[:, 4:].any()


def test_adaptive_median_by_hand():
    adata = _line(np.array([[0, 9], [5, 1], [5, 1], [0, 1], [0, 1], [0, 1], [0, 1]]))
    pp.observed_mask(adata)
    adata.obs["library"] = 10.0
    got = baselines.adaptive_median(adata, mask_layer="observed", size_factor_key="library", n_rings=2)
    value = np.log1p(5000)
    # spot 1 sees (0, 5, 5); spot 0 sees (0, 5), then (0, 5, 5); spots 4 to 6 see zeros only
    np.testing.assert_allclose(got[[1, 0, 4, 5, 6], 0], [value, value / 2, value, value, value], rtol=1e-6)
    with pytest.raises(ValueError, match="takes zeros for missing values"):
        baselines.adaptive_median(adata)


def test_knn_finds_the_spots_that_are_alike():
    rng = np.random.default_rng(0)
    group = np.arange(60) % 2  # the two kinds alternate in space
    rate = np.where(group[:, None] == np.arange(20) % 2, 60, 20)
    adata = _line(rng.poisson(rate))
    adata.layers["observed"] = rng.random(adata.shape) < 0.7
    adata.obs["library"] = 1000.0
    options = {"mask_layer": "observed", "size_factor_key": "library"}
    got = baselines.knn(adata, n_neighbors=10, shrinkage=0.1, **options)
    error = (got - np.log1p(10 * rate))[~adata.layers["observed"]]
    assert np.sqrt(np.mean(error**2)) < 0.15
    assert np.abs(baselines.neighbor_mean(adata, **options) - np.log1p(10 * rate)).mean() > 0.3


def test_ridge_is_ridge_without_the_gene_itself():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    inputs, target = rng.normal(size=(50, 7)), rng.normal(size=50)
    observed = rng.random(50) < 0.7
    for penalty, got in zip((0.5, 20.0), _ridge(inputs, observed, target[observed], (0.5, 20.0)), strict=True):
        expected = Ridge(alpha=penalty).fit(inputs[observed], target[observed]).predict(inputs)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_ridge_does_not_read_an_entry_to_predict_it(hidden):
    # unrelated genes: a prediction correlated with the entry itself would have read it
    rng = np.random.default_rng(0)
    adata = hidden.copy()
    adata.X = rng.poisson(3, size=adata.shape).astype(np.float32)
    adata.layers["observed"] = np.ones(adata.shape, dtype=bool)
    adata.obs["library"] = 300.0
    got = baselines.ridge(adata, mask_layer="observed", size_factor_key="library", alpha=200.0, n_components=30)
    value = log1p_cp10k(adata.X, adata.obs["library"].to_numpy())
    own = np.mean([np.corrcoef(got[:, g], value[:, g])[0, 1] for g in range(adata.n_vars)])
    assert own < 0.5  # 61 inputs on 300 spots overfit to about this much; reading the entry gives 0.9
    with pytest.raises(ValueError, match="ignores the evidence of a zero"):
        baselines.ridge(adata)


def test_soft_impute_recovers_a_low_rank_matrix():
    rng = np.random.default_rng(0)
    truth = (rng.normal(size=(120, 3)) @ rng.normal(size=(3, 60)) + 5).astype(np.float32)
    mask = rng.random(truth.shape) < 0.5
    data = LogData(np.where(mask, truth, 0), mask, np.arange(60))
    *_, (_, prediction) = _soft_impute(data, 5, (*_PATH, 0.005, 0.002), seed=0)
    relative = np.linalg.norm((prediction - truth)[~mask]) / np.linalg.norm((truth - truth.mean(axis=0))[~mask])
    assert relative < 0.05


def test_soft_impute_without_missing_entries_is_a_shrunken_svd():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 15)).astype(np.float32)
    data = LogData(values, np.ones(values.shape, dtype=bool), np.arange(15))
    ((_, prediction),) = _soft_impute(data, 15, (0.3,), seed=0)
    u, s, vt = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    expected = values.mean(axis=0) + (u * np.maximum(s - 0.3 * s[0], 0)) @ vt
    np.testing.assert_allclose(prediction, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["pca", "poisson_nmf", "soft_impute"])
def test_low_rank_rates_are_recovered(name):
    rng = np.random.default_rng(0)
    rate = rng.dirichlet(np.ones(3), size=200) @ rng.dirichlet(np.full(50, 0.5), size=3)
    adata = AnnData(rng.poisson(2000 * rate).astype(np.float32))
    adata.obs["library"] = 2000.0
    got = np.expm1(getattr(baselines, name)(adata, size_factor_key="library").astype(np.float64)) / 1e4
    unfitted = rng.poisson(2000 * rate)
    gene_mean = np.asarray(adata.X.sum(axis=0)) / 4e5
    options = {"library": np.full(200, 2000.0), "gene_mean": gene_mean}
    best = metrics.poisson_deviance_explained(unfitted, rate, **options)
    assert metrics.poisson_deviance_explained(unfitted, got, **options) > 0.97 * best
    assert np.corrcoef(got.ravel(), rate.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("name", ["pca", "poisson_nmf"])
def test_baselines_for_zeros_as_data_say_so(hidden, name):
    with pytest.raises(ValueError, match=f"{name} needs every entry .* use soft_impute"):
        getattr(baselines, name)(hidden, mask_layer="observed")


@pytest.mark.parametrize("name", sorted(set(MASKED) | set(RATE)))
def test_seed_decides_everything(hidden, thinned, name):
    adata, options = (hidden, {"mask_layer": "observed"}) if name in MASKED else (thinned, {})
    first = getattr(baselines, name)(adata, seed=3, **options)
    np.random.seed(0)
    np.testing.assert_array_equal(first, getattr(baselines, name)(adata, seed=3, **options))


def test_empty_spots_get_an_answer(hidden, thinned):
    for adata, names, options in ((hidden, MASKED, {"mask_layer": "observed"}), (thinned, RATE, {})):
        adata = adata.copy()
        adata.X = adata.X.toarray()
        adata.X[:4] = 0
        if "observed" in adata.layers:
            adata.layers["observed"][:4] = False
        for name in names:
            assert np.isfinite(getattr(baselines, name)(adata, **options)).all(), name


def test_bad_input_is_named(hidden):
    adata = hidden.copy()
    with pytest.raises(KeyError, match=r"'graph' not found in adata.obsp.*pp.spatial_neighbors"):
        baselines.neighbor_mean(adata, graph_key="graph")
    with pytest.raises(KeyError, match="'nothing' not found in adata.layers"):
        baselines.gene_mean(adata, mask_layer="nothing")
    with pytest.raises(KeyError, match="1 of 2 genes are not in adata.var_names: 'no such gene'"):
        baselines.gene_mean(adata, genes=[adata.var_names[0], "no such gene"])
    adata.obs["bad"] = np.where(np.arange(adata.n_obs) < 2, np.nan, 100)
    with pytest.raises(ValueError, match="2 of 300 library sizes in adata.obs\\[.bad.\\]"):
        baselines.gene_mean(adata, size_factor_key="bad")
    adata.layers["observed"][:, :3] = False
    with pytest.raises(ValueError, match=r"3 of 80 genes to predict have no observed entry .* \(genes=...\)"):
        baselines.soft_impute(adata, mask_layer="observed")
    assert np.isfinite(baselines.soft_impute(adata, mask_layer="observed", genes=adata.var_names[3:])[:, 3:]).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("knn", {"n_neighbors": 0}, "n_neighbors must be a whole number of at least 1, got 0"),
        ("knn", {"n_neighbors": 300}, "n_neighbors must be below the number of spots, 300; got 300"),
        ("soft_impute", {"rank": 2.5}, "rank must be a whole number of at least 1, got 2.5"),
        ("adaptive_median", {"n_rings": 0}, "n_rings must be a whole number of at least 1, got 0"),
        ("neighbor_mean", {"shrinkage": -1}, "shrinkage must be a number of at least 0, got -1"),
        ("ridge", {"alpha": np.nan}, "alpha must be a number of at least 0, got nan"),
        ("pca", {"floor": "low"}, "floor must be a number of at least 0, got 'low'"),
        ("poisson_nmf", {"shrinkage": 1.5}, "shrinkage must be between 0 and 1, got 1.5"),
    ],
)
def test_hyper_parameters_out_of_range_are_named(hidden, name, options, message):
    mask_layer = "observed" if name in MASKED else None
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(baselines, name)(hidden, mask_layer=mask_layer, **options)


@pytest.mark.parametrize("name", ["neighbor_mean", "knn", "ridge", "soft_impute", "poisson_nmf", "pca"])
def test_no_shrinkage_leaves_no_entry_without_an_answer(hidden, name):
    adata, mask_layer = hidden.copy(), "observed" if name in MASKED else None
    adata.layers["observed"][:40] = False
    option = {"ridge": "alpha", "pca": "floor"}.get(name, "shrinkage")
    assert np.isfinite(getattr(baselines, name)(adata, mask_layer=mask_layer, **{option: 0})).all()


def test_every_baseline_documents_its_parameters():
    for name in baselines.__all__:
        function = getattr(baselines, name)
        described = re.findall(r"^(\w+)$", function.__doc__.partition("Returns\n---")[0], re.MULTILINE)
        assert described == ["Parameters", *inspect.signature(function).parameters]
        assert described[1:8] == [
            "adata", "layer", "mask_layer", "size_factor_key", "graph_key", "genes", "seed"
        ]  # fmt: skip
        assert function.__name__ == name and "Raises\n------" in function.__doc__


def test_a_method_becomes_a_baseline():
    @baseline(without_mask="{name} needs a mask")
    def typical(data: LogData, graph: sparse.csr_matrix, seed: int, factor: float = 1.0) -> np.ndarray:
        """Predict the mean.

        Parameters
        ----------
        factor
            Of the mean.
        """
        assert graph.shape == (4, 4) and seed == 3
        return factor * data.mean[data.columns]

    adata = _line(np.array([[1, 3], [2, 1], [4, 4], [0, 2]]))
    pp.observed_mask(adata)
    adata.obs["library"] = 10.0
    got = typical(adata, None, "observed", "library", "spatial_connectivities", None, 3, 2.0)
    expected = [np.log1p([1000, 2000, 4000]).mean(), np.log1p([3000, 1000, 4000, 2000]).mean()]
    np.testing.assert_allclose(got, np.tile(2 * np.array(expected), (4, 1)), rtol=1e-6)
    assert str(inspect.signature(typical)).endswith("seed: 'int' = 0, factor: 'float' = 1.0) -> 'np.ndarray'")
    with pytest.raises(ValueError, match="typical needs a mask"):
        typical(adata)
    with pytest.raises(TypeError, match=r"typical\(\) got an unexpected keyword argument 'weight'"):
        typical(adata, mask_layer="observed", weight=1.0)


@pytest.mark.parametrize("limits", [{"neighbor_mean": 0.24, "knn": 0.17, "ridge": 0.15, "soft_impute": 0.145}])
def test_reference_figures_on_a_real_slide(shared_data: Path, limits):
    """Peers must stay as strong as published: mouse muscle, 30 % of non-zero target entries hidden, seed 0."""
    import anndata as ad
    import scanpy as sc

    adata = ad.read_h5ad(shared_data / "mouse_muscle_Vis7B_5dpi.h5ad")
    sc.pp.filter_cells(adata, min_counts=200)
    pp.select_genes(adata)
    adata = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()
    pp.spatial_neighbors(adata)
    adata = pp.hold_out(adata, genes="target_gene", seed=0)
    pp.observed_mask(adata)
    library = adata.obs["total_counts"].to_numpy()
    truth = log1p_cp10k(adata.layers["truth"], library)
    held_out = adata.layers["held_out"]
    assert metrics.poisson_floor(adata.layers["truth"], library, held_out) == pytest.approx(0.093, abs=0.003)
    options = {"mask_layer": "observed", "size_factor_key": "total_counts", "genes": "target_gene"}
    gene_mean = metrics.completion_scores(truth, baselines.gene_mean(adata, **options), held_out)["mse"]
    assert gene_mean == pytest.approx(0.476, abs=0.005)
    for name, limit in limits.items():
        assert metrics.completion_scores(truth, getattr(baselines, name)(adata, **options), held_out)["mse"] < limit
