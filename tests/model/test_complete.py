"""Writing a completion into an AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scvi
from scipy import sparse

from lgdist_scvi import LGDiST, datasets
from lgdist_scvi.data import NeighborhoodDataset
from lgdist_scvi.inference import Prediction

LAYERS = [f"completed{suffix}" for suffix in ("", "_std", "_lower", "_upper", "_provenance")]


@pytest.fixture(scope="module")
def done(trained) -> ad.AnnData:
    """The registered slide, completed."""
    adata = trained.adata.copy()
    trained.complete(adata, seed=3, silent=True)
    return adata


def test_layers_have_the_documented_types(done):
    for name in LAYERS:
        assert done.layers[name].shape == done.shape
        assert done.layers[name].dtype == (np.uint8 if name.endswith("provenance") else np.float32)
        assert np.isfinite(done.layers[name]).all()


def test_values_are_those_of_the_methods(trained, done):
    kwargs = {"return_numpy": True, "seed": 3}
    np.testing.assert_array_equal(done.layers["completed"], trained.get_completed_expression(**kwargs))
    lower, upper = trained.get_prediction_interval(0.9, **kwargs)
    np.testing.assert_array_equal(done.layers["completed_lower"], lower)
    np.testing.assert_array_equal(done.layers["completed_upper"], upper)
    assert done.uns["completed"]["level"] == 0.9


def test_provenance(done):
    counts, known = done.X.toarray(), np.asarray(done.layers["known"])
    provenance = done.layers["completed_provenance"]
    np.testing.assert_array_equal(provenance == 0, known & (counts > 0))
    np.testing.assert_array_equal(provenance == 1, known & (counts == 0))
    np.testing.assert_array_equal(provenance == 2, ~known)
    assert len(np.unique(provenance)) == 3
    assert (done.layers["completed_std"][provenance == 0] == 0).all()
    assert (done.layers["completed_std"][provenance != 0] > 0).all()
    # its legend lies beside it
    assert list(done.uns["completed"]["provenance"])[:3] == ["measured", "filled zero", "filled missing entry"]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"fill": "masked"}, lambda counts, known: np.where(known, 0, 2)),
        ({"observed": "model"}, lambda counts, known: np.where(known, np.where(counts > 0, 3, 1), 2)),
    ],
)
def test_provenance_of_other_rules(trained, kwargs, expected):
    adata = trained.adata.copy()
    trained.complete(adata, level=None, n_samples=2, silent=True, **kwargs)
    counts, known = adata.X.toarray(), np.asarray(adata.layers["known"])
    np.testing.assert_array_equal(adata.layers["completed_provenance"], expected(counts, known))


def test_without_intervals(trained):
    adata = trained.adata.copy()
    trained.complete(adata, layer_added="filled", level=None, n_samples=2, silent=True)
    assert {"filled", "filled_std", "filled_provenance"} <= set(adata.layers)
    full = trained.adata.copy()
    full.layers["known"] = np.ones(full.shape, dtype=bool)
    with pytest.warns(UserWarning, match="Nothing was filled.*fill='masked' names no entry"):
        trained.complete(full, fill="masked", level=None, n_samples=2, silent=True)
    # intervals of an earlier completion do not stay beside other values
    trained.complete(adata, level=0.9, n_samples=2, silent=True)
    trained.complete(adata, level=None, n_samples=2, silent=True)
    assert not {"completed_lower", "completed_upper"} & set(adata.layers)
    assert "filled_lower" not in adata.layers
    assert "level" not in adata.uns["filled"]


def test_record(trained, done):
    record = done.uns["completed"]
    assert record["seed"] == 3
    assert record["estimand"] == "rate"
    assert record["fill"] == "zeros"
    assert record["mask"] == "known"
    assert record["scale"] == "log1p(CP10K)"
    assert record["scvi_tools_version"] == scvi.__version__
    assert list(record["genes"]) == list(trained.adata.var_names)
    assert record["gene_likelihood"] == "nb"
    assert record["training_seed"] == 0
    # levels by all genes and thirds of them
    assert record["calibration_coverage"].shape == (len(record["calibration_levels"]), 4)
    assert (np.diff(record["calibration_coverage"], axis=0) >= 0).all()
    assert sum(record["n_calibration_entries"]) > 0


def test_everything_survives_a_file(done, tmp_path):
    done.write_h5ad(tmp_path / "done.h5ad")
    read = ad.read_h5ad(tmp_path / "done.h5ad")
    for name in LAYERS:
        np.testing.assert_array_equal(read.layers[name], done.layers[name])
        assert read.layers[name].dtype == done.layers[name].dtype

    def same(first, second):
        assert set(first) == set(second)
        for key, value in first.items():
            if isinstance(value, dict):
                same(value, second[key])
            else:
                assert np.array_equal(np.asarray(value), np.asarray(second[key])), key

    same(done.uns["completed"], read.uns["completed"])


@pytest.mark.parametrize("seed", [None, 7])
def test_works_with_and_without_a_seed_in_the_settings(slide, tmp_path, seed):
    """The first thing a user does: three lines, no seed."""
    scvi.settings.seed = seed
    LGDiST.setup_anndata(slide)
    model = LGDiST(slide, n_latent=4, n_hidden=16, n_layers=1, n_heads=1, n_denoiser_hidden=16, n_denoiser_layers=1)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.complete(silent=True)
    assert ("training_seed" in slide.uns["completed"]) == (seed is not None)
    slide.write_h5ad(tmp_path / "slide.h5ad")


def test_can_be_repeated(trained):
    """A completion replaces an earlier one of that name, and nothing else."""
    adata = trained.adata.copy()
    trained.complete(adata, n_samples=2, silent=True)
    first = adata.layers["completed_std"].copy()
    trained.complete(adata, n_samples=2, seed=12, silent=True)
    assert not np.array_equal(first, adata.layers["completed_std"])
    trained.complete(adata, layer_added="another", n_samples=2, silent=True)
    np.testing.assert_array_equal(adata.layers["another"], adata.layers["completed"])


@pytest.mark.parametrize("name", ["known", "raw", "spatial"])
def test_never_writes_over_what_is_not_a_completion(trained, snapshot, name):
    adata = trained.adata.copy()
    adata.layers["raw"] = adata.X.copy()
    adata.uns["spatial"] = {"slide": {"images": {}}}
    before = snapshot(adata)
    with pytest.raises(ValueError, match=f"{name}.*written over; choose another layer_added"):
        trained.complete(adata, layer_added=name, silent=True)
    assert snapshot(adata) == before
    assert adata.uns["spatial"] == {"slide": {"images": {}}}


def test_nothing_is_written_if_anything_fails(trained, snapshot, monkeypatch):
    adata = trained.adata.copy()
    before = snapshot(adata)
    monkeypatch.setattr(Prediction, "interval", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained.complete(adata, n_samples=2, silent=True)
    assert snapshot(adata) == before
    assert "completed" not in adata.uns


@pytest.mark.parametrize("estimand", ["rate", "captured"])
def test_layers_are_what_the_getters_give(trained, estimand):
    """One set of samples serves deviations and intervals, and it is the one that the seed stands for."""
    adata = trained.adata.copy()
    trained.complete(adata, n_samples=5, estimand=estimand, level=0.8, seed=3, silent=True)
    shared = {"adata": adata, "estimand": estimand, "n_samples": 5, "seed": 3, "return_numpy": True}
    _, deviation = trained.get_completed_expression(**shared, return_std=True)
    lower, upper = trained.get_prediction_interval(0.8, **shared)
    value = trained.get_completed_expression(adata, estimand=estimand, return_numpy=True)
    for suffix, block in {"": value, "_std": deviation, "_lower": lower, "_upper": upper}.items():
        np.testing.assert_array_equal(adata.layers[f"completed{suffix}"], block)


def test_one_sample_has_no_spread_so_25_are_drawn(trained):
    one, many = trained.adata.copy(), trained.adata.copy()
    trained.complete(one, n_samples=1, level=None, silent=True)
    trained.complete(many, n_samples=25, level=None, silent=True)
    np.testing.assert_array_equal(one.layers["completed_std"], many.layers["completed_std"])
    assert (one.layers["completed_std"] > 0).any()
    with pytest.raises(ValueError, match="an interval needs n_samples of at least 2, got 1"):
        trained.complete(one, "other", n_samples=1, silent=True)


def test_a_layer_named_like_a_deviation(trained):
    adata = trained.adata.copy()
    genes = list(adata.var_names[:5])
    trained.complete(adata, layer_added="completed", genes=genes, n_samples=2, silent=True)
    trained.complete(adata, layer_added="other_std", genes=genes, n_samples=2, silent=True)
    np.testing.assert_array_equal(adata.layers["other_std"], adata.layers["completed"])


def test_a_backed_slide_is_completed_and_its_file_left_alone(trained, done, tmp_path):
    file, copy = tmp_path / "slide.h5ad", tmp_path / "completed.h5ad"
    trained.adata.copy().write_h5ad(file)
    before = file.read_bytes()
    backed = ad.read_h5ad(file, backed="r")
    with pytest.raises(ValueError, match=r"a part of an AnnData that is backed by a file; call to_memory\(\) on it"):
        trained.complete(backed[:50], silent=True)
    trained.complete(backed, seed=3, silent=True)
    for name in LAYERS:
        np.testing.assert_array_equal(backed.layers[name], done.layers[name])
    backed.write_h5ad(copy)
    backed.file.close()
    assert file.read_bytes() == before
    np.testing.assert_array_equal(ad.read_h5ad(copy).layers["completed"], done.layers["completed"])


def test_reordered_genes(trained, done):
    order = np.random.default_rng(0).permutation(done.n_vars)
    adata = trained.adata[:, order].copy()
    trained.complete(adata, seed=3, silent=True)
    for name in LAYERS:
        np.testing.assert_array_equal(adata.layers[name], done.layers[name][:, order])


@pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_genes_that_are_not_registered_keep_their_values(trained, done, to_format):
    """A superset of the genes, in another order."""
    n_obs, n_vars = done.shape
    rng = np.random.default_rng(0)
    extra = ad.AnnData(sparse.csr_matrix(rng.poisson(0.7, (n_obs, 6)).astype(np.float32)), obs=done.obs[[]])
    extra.var_names = [f"extra_{i}" for i in range(6)]
    extra.layers["known"] = rng.random((n_obs, 6)) < 0.5
    adata = ad.concat([trained.adata, extra], axis=1, merge="same", pairwise=True)
    adata = adata[:, rng.permutation(adata.n_vars)].copy()
    adata.obsm["spatial"] = trained.adata.obsm["spatial"]
    adata.obsp["spatial_connectivities"] = trained.adata.obsp["spatial_connectivities"]
    adata.X = to_format(adata.X.toarray())
    trained.complete(adata, seed=3, silent=True)
    registered = adata.var_names.get_indexer(done.var_names)
    for name in LAYERS:
        np.testing.assert_array_equal(adata.layers[name][:, registered], done.layers[name])
    others = np.setdiff1d(np.arange(adata.n_vars), registered)
    counts = adata.X if isinstance(adata.X, np.ndarray) else adata.X.toarray()
    library = (trained.adata.X.toarray() * np.asarray(trained.adata.layers["known"])).sum(axis=1, keepdims=True)
    measured = np.log1p(
        np.divide(counts[:, others].astype(float), library, out=np.zeros((n_obs, 6)), where=library > 0) * 1e4
    ).astype(np.float32)
    for name in ("completed", "completed_lower", "completed_upper"):
        np.testing.assert_array_equal(adata.layers[name][:, others], measured)
    for name in ("completed_std", "completed_provenance"):
        assert (adata.layers[name][:, others] == 0).all()


def test_a_view_becomes_an_object_of_its_own(trained):
    view = trained.adata[:50]
    trained.complete(view, n_samples=2, silent=True)
    assert view.layers["completed"].shape == (50, trained.adata.n_vars)
    assert "completed" not in trained.adata.layers


def test_a_new_slide(trained):
    adata = datasets.simulated_visium(n_spots=80, n_genes=40, seed=5)
    adata.layers["known"] = np.random.default_rng(0).random(adata.shape) < 0.9
    trained.complete(adata, n_samples=2, silent=True)
    assert np.isfinite(adata.layers["completed"]).all()


@pytest.fixture(scope="module")
def own(fit, tissue) -> LGDiST:
    """A model whose data may be completed."""
    return fit(tissue.copy(), 1, {"mask_layer": "known"})


@pytest.mark.parametrize(
    ("question", "kwargs"),
    [
        ("complete", {"n_samples": 2}),
        ("get_completed_expression", {}),
        ("get_normalized_expression", {}),
        ("get_prediction_interval", {"n_samples": 2}),
        ("get_latent_representation", {}),
        ("posterior_predictive_sample", {}),
    ],
)
@pytest.mark.parametrize("registered", [True, False])
def test_data_are_read_and_checked_once_per_question(own, monkeypatch, question, kwargs, registered):
    adata = None if registered else own.adata.copy()
    built, build = [], NeighborhoodDataset.__init__

    def count(self, *args, **kwargs):
        built.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(NeighborhoodDataset, "__init__", count)
    getattr(own, question)(adata=adata, silent=True, **kwargs)
    assert len(built) == (0 if registered else 1)  # what was registered has been read
