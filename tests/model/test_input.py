"""Bad input gets a sentence that names the key, says how much is wrong, and what to do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi._anndata import get_mask
from lgdist_scvi.data import ObspField

N_SPOTS, N_GENES = 60, 12


@pytest.fixture
def adata() -> AnnData:
    adata = datasets.simulated_visium(n_spots=N_SPOTS, n_genes=N_GENES, seed=0)
    adata.layers["counts"] = adata.X.copy()
    adata.layers["known"] = np.ones(adata.shape, dtype=bool)
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() + 1.0
    pp.spatial_neighbors(adata)
    return adata


def counts(value: float) -> Callable:
    def change(adata):
        adata.X = adata.X.toarray()
        adata.X[3, 4] = adata.X[5, 6] = value

    return change


def layer(value: float) -> Callable:
    def change(adata):
        adata.layers["counts"] = adata.X.toarray()
        adata.layers["counts"][3, 4] = value

    return change


def edges(*pairs) -> Callable:
    def change(adata):
        graph = adata.obsp["spatial_connectivities"].tolil()
        for i, j in pairs:
            graph[i, j] = 1
        adata.obsp["spatial_connectivities"] = graph.tocsr()

    return change


def set_item(attribute: str, key: str, value) -> Callable:
    def change(adata):
        getattr(adata, attribute)[key] = value(adata) if callable(value) else value

    return change


def delete(attribute: str, key: str) -> Callable:
    def change(adata):
        del getattr(adata, attribute)[key]

    return change


def two_slides(adata):
    adata.obs["slide"] = np.where(np.arange(adata.n_obs) < 30, "first", "second")


def same_place(adata):
    adata.obsm["spatial"][7] = adata.obsm["spatial"][8]


def nan_place(adata):
    adata.obsm["spatial"][[7, 9], 0] = np.nan


def duplicated(axis: str) -> Callable:
    def change(adata):
        names = np.array(getattr(adata, f"{axis}_names"))
        names[1] = names[0]
        setattr(adata, f"{axis}_names", names)

    return change


def nothing_known_of_a_gene(adata):
    adata.layers["known"][:, [2, 5]] = False


def nothing_known_of_a_slide(adata):
    adata.layers["known"][:4] = False
    adata.obs["sample"] = ["first"] * 4 + ["second"] * (adata.n_obs - 4)
    graph = adata.obsp["spatial_connectivities"].tolil()
    graph[:4, 4:], graph[4:, :4] = 0, 0
    adata.obsp["spatial_connectivities"] = graph.tocsr()


def no_counts_at_all(adata):
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)


CASES = {
    # name: (change, arguments of setup_anndata, error, parts of the message)
    "NaN counts": (counts(np.nan), {}, ValueError, ["2 of 720 entries of adata.X", "NaN", "mask_layer=..."]),
    "infinite counts": (counts(np.inf), {}, ValueError, ["2 of 720", "adata.X", "infinite", "layer=..."]),
    "negative counts": (counts(-1), {}, ValueError, ["2 of 720", "adata.X", "negative", "layer=..."]),
    "fractions": (counts(0.5), {}, ValueError, ["2 of 720", "adata.X", "not whole numbers", "layer=..."]),
    "bad layer": (layer(np.nan), {"layer": "counts"}, ValueError, ["1 of 720", "adata.layers['counts']", "NaN"]),
    "no layer": (None, {"layer": "raw"}, KeyError, ["'raw' not found in adata.layers", "'counts'", "None for adata.X"]),
    "empty X": (lambda adata: setattr(adata, "X", None), {}, ValueError, ["adata.X is empty", "layer=...", "'counts'"]),
    "all zero": (no_counts_at_all, {}, ValueError, ["60 of 60 spots", "no count is observed"]),
    "no mask": (
        None,
        {"mask_layer": "mask"},
        KeyError,
        ["'mask' not found in adata.layers", "'known'", "pp.observed_mask"],
    ),
    "text as mask": (
        set_item("layers", "known", np.full((N_SPOTS, N_GENES), "yes")),
        {"mask_layer": "known"},
        ValueError,
        ["adata.layers['known']", "bool"],
    ),
    "counts as mask": (
        set_item("layers", "known", lambda adata: adata.X * 2),
        {"mask_layer": "known"},
        ValueError,
        ["of 720 entries of adata.layers['known']", "neither 0 nor 1", "pp.observed_mask"],
    ),
    "genes never observed": (
        nothing_known_of_a_gene,
        {"mask_layer": "known"},
        ValueError,
        ["2 of 12 genes", "adata.layers['known']", "'gene_03'", "mask.any(axis=0)"],
    ),
    "spots that nothing predicts": (
        nothing_known_of_a_slide,
        {"mask_layer": "known", "sample_key": "sample"},
        ValueError,
        ["4 of 60 spots", "nothing predicts them", "drop that slide"],
    ),
    "no coordinates": (
        delete("obsm", "spatial"),
        {},
        KeyError,
        ["'spatial' not found in adata.obsm", "adata.obs[['array_col', 'array_row']]", "spatial_key=..."],
    ),
    "no such coordinates": (
        None,
        {"spatial_key": "pixels"},
        KeyError,
        ["'pixels' not found in adata.obsm", "available: 'spatial'"],
    ),
    "NaN coordinates": (nan_place, {}, ValueError, ["2 of 60 spots", "adata.obsm['spatial']", "drop those spots"]),
    "one coordinate": (
        set_item("obsm", "spatial", np.arange(60.0)[:, None]),
        {},
        ValueError,
        ["adata.obsm['spatial']", "(60, 1)", "expected (60, 2)"],
    ),
    "shared coordinates": (
        same_place,
        {},
        ValueError,
        ["2 of 60 spots share", "adata.obsm['spatial']", "sample_key=..."],
    ),
    "no graph": (
        None,
        {"graph_key": "knn"},
        KeyError,
        ["'knn' not found in adata.obsp", "'spatial_connectivities'", "pp.spatial_neighbors"],
    ),
    "self loops": (
        edges((3, 3), (9, 9)),
        {},
        ValueError,
        ["2 spots are their own neighbours", "adata.obsp['spatial_connectivities']", "pp.spatial_neighbors"],
    ),
    "dense graph": (
        set_item("obsp", "spatial_connectivities", np.ones((60, 60))),
        {},
        ValueError,
        ["adata.obsp['spatial_connectivities']", "dense", "pp.spatial_neighbors"],
    ),
    "edges between slides": (
        two_slides,
        {"sample_key": "slide"},
        ValueError,
        ["edges", "different slides", "'slide'", "pp.spatial_neighbors(adata, sample_key='slide')"],
    ),
    "no slides": (
        None,
        {"sample_key": "slide"},
        KeyError,
        ["'slide' not found in adata.obs", "'sample'", "sample_key"],
    ),
    "spots without a slide": (
        set_item("obs", "slide", [None, *["one"] * 59]),
        {"sample_key": "slide"},
        ValueError,
        ["1 of 60 spots", "adata.obs['slide']", "give every spot a slide"],
    ),
    "same spot names": (duplicated("obs"), {}, ValueError, ["1 spot name", "adata.obs_names_make_unique()"]),
    "same gene names": (duplicated("var"), {}, ValueError, ["1 gene name", "adata.var_names_make_unique()"]),
    "no library sizes": (
        None,
        {"size_factor_key": "n_counts"},
        KeyError,
        ["'n_counts' not found in adata.obs", "'total'", "pp.select_genes"],
    ),
    "NaN library sizes": (
        set_item("obs", "total", [np.nan, -1.0, np.inf, *[9e3] * 57]),
        {"size_factor_key": "total"},
        ValueError,
        ["3 of 60 library sizes", "adata.obs['total']", "pp.select_genes"],
    ),
    "text as library sizes": (
        set_item("obs", "total", ["many"] * 60),
        {"size_factor_key": "total"},
        ValueError,
        ["adata.obs['total']", "not numeric"],
    ),
    "size factors around 1": (
        set_item("obs", "total", 1.0),
        {"size_factor_key": "total"},
        ValueError,
        ["of 60 library sizes in adata.obs['total'] are smaller than the counts", "pp.select_genes"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_setup_refuses(adata, case):
    change, arguments, error, parts = CASES[case]
    if change is not None:
        change(adata)
    with pytest.raises(error) as raised:
        LGDiST.setup_anndata(adata, **arguments)
    message = str(raised.value)
    assert type(raised.value) is error
    for part in parts:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("batch_key", "no batch, label or covariate is corrected for; sample_key tells slides apart"),
        ("labels_key", "sample_key tells slides apart"),
        ("categorical_covariate_keys", "sample_key tells slides apart"),
        ("sampel_key", "did you mean 'sample_key'"),
        ("mask", "did you mean 'mask_layer'"),
        ("size_factor", "did you mean 'size_factor_key'"),
    ],
)
def test_unknown_keywords(adata, keyword, message):
    with pytest.raises(TypeError, match=f"setup_anndata knows no '?{keyword}'?.*{message}"):
        LGDiST.setup_anndata(adata, **{keyword: "sample"})


def test_other_containers(adata):
    mudata = pytest.importorskip("mudata")
    with pytest.raises(TypeError, match=r"needs an AnnData, got MuData; .*mdata\['rna'\]"):
        LGDiST.setup_anndata(mudata.MuData({"rna": adata}))
    named = type("SpatialData", (), {})()
    with pytest.raises(TypeError, match="got SpatialData; pass one of its tables, .*datasets.read"):
        LGDiST.setup_anndata(named)
    with pytest.raises(TypeError, match="got str; read the file with lgdist_scvi.datasets.read"):
        LGDiST.setup_anndata("slide.h5ad")


# ---- what is done as asked, with a warning


def beside_the_tissue(kind: Callable) -> Callable:
    def change(adata):
        adata.obs["in_tissue"] = [kind(int(i >= 7)) for i in range(N_SPOTS)]

    return change


def many_neighbors(adata):
    pp.spatial_neighbors(adata, n_neighbors=55, max_distance=1e6)


def held_out(adata):
    adata.layers["held_out"] = np.arange(N_SPOTS * N_GENES).reshape(adata.shape) % 10 == 0


def rounded(adata):
    dense = adata.X.toarray()
    adata.X = np.rint(dense / dense.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)


WARNED = {
    "glass": (beside_the_tissue(int), {}, "7 of 60 spots lie outside the tissue .*in_tissue'] == 1].copy"),
    "a wide graph": (many_neighbors, {}, "up to 55 neighbours in adata.obsp.*pp.spatial_neighbors.*max_distance"),
    "a hold-out without a mask": (held_out, {}, "72 entries that .*held_out.*pp.observed_mask.*mask_layer='observed'"),
    "a mask that shows what is held out": (held_out, {"mask_layer": "known"}, "72 entries .*read as measured zeros"),
    "rounded CP10K": (rounded, {}, "nearly the same total, about 10,000, .*normalised"),
}


@pytest.mark.parametrize("case", WARNED)
def test_setup_warns(adata, case):
    change, arguments, message = WARNED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        LGDiST.setup_anndata(adata, **arguments)
    change(adata)
    with pytest.warns(UserWarning, match=message):
        LGDiST.setup_anndata(adata, **arguments)


@pytest.mark.parametrize(
    "kind", [int, float, bool, str, lambda i: str(float(i)), lambda i: str(i == 1), "ny".__getitem__]
)
@pytest.mark.parametrize("dtype", [None, "category"])
def test_spots_outside_the_tissue_are_named_with_what_leaves_them_out(adata, kind, dtype):
    beside_the_tissue(kind)(adata)
    adata.obs["in_tissue"] = adata.obs["in_tissue"].astype(dtype) if dtype else adata.obs["in_tissue"]
    with pytest.warns(UserWarning, match="7 of 60 spots lie outside the tissue") as told:
        LGDiST.setup_anndata(adata)
    line = re.search(r"adata = adata\[.*\]\.copy\(\)", str(told[0].message))[0]
    names = {"adata": adata}
    exec(line, names)
    assert list(names["adata"].obs_names) == list(adata.obs_names[7:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        LGDiST.setup_anndata(names["adata"])


def test_the_mask_of_a_hold_out_is_taken_without_a_word(adata):
    for scheme, arguments in (("entry", {"mask_layer": "observed"}), ("thinning", {})):
        hidden = pp.hold_out(adata, scheme=scheme)
        pp.observed_mask(hidden, method="held_out")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            LGDiST.setup_anndata(hidden, **arguments)
        shown = LGDiST(hidden).adata_manager.create_torch_dataset().mask
        if arguments:
            np.testing.assert_array_equal(np.asarray(shown, dtype=bool), hidden.layers["observed"])
            assert not shown[hidden.layers["held_out"].astype(bool)].any()
        else:
            assert shown is None  # molecules are taken away, no entry is hidden


@pytest.mark.parametrize("shape", [(N_SPOTS, N_GENES - 1), (N_SPOTS - 1, N_GENES)])
def test_mask_of_the_wrong_shape(adata, shape):
    """AnnData refuses such a layer by itself; one that comes through is refused here."""
    stand_in = SimpleNamespace(layers={"known": np.ones(shape, dtype=bool)}, shape=adata.shape)
    with pytest.raises(ValueError, match=rf"adata.layers\['known'\] has shape \({shape[0]}, {shape[1]}\).*\(60, 12\)"):
        get_mask(stand_in, "known")


def test_graph_of_the_wrong_size(adata):
    """AnnData refuses such a graph by itself; one that comes through is refused here."""
    obsp = {"spatial_connectivities": sparse.csr_matrix((40, 40))}
    stand_in = SimpleNamespace(obsp=obsp, obs=adata.obs, n_obs=adata.n_obs)
    message = r"has shape \(40, 40\), adata has 60 spots; build it with pp.spatial_neighbors"
    with pytest.raises(ValueError, match=message):
        ObspField("spatial_connectivities", None).validate_field(stand_in)


# ---- what looks bad and is fine


def complete(adata, fit, **setup) -> np.ndarray:
    values = fit(adata, 1, setup).get_completed_expression(return_numpy=True)
    assert np.isfinite(values).all()
    return values


def test_no_graph_is_built(adata, fit):
    del adata.obsp["spatial_connectivities"]
    complete(adata, fit)
    assert "spatial_connectivities" in adata.obsp


def test_a_spot_without_counts_is_completed_from_its_neighbours(adata, fit):
    dense = adata.X.toarray()
    dense[[5, 6]] = 0
    adata.X = dense
    values = complete(adata, fit)
    assert (values[[5, 6]] > 0).all()


def test_a_spot_without_neighbours_is_completed_from_itself(adata, fit):
    adata.obsm["spatial"][4] = [1e6, 1e6]
    pp.spatial_neighbors(adata)
    assert adata.obsp["spatial_connectivities"][4].nnz == 0
    complete(adata, fit)


@pytest.mark.parametrize("conditioning", ["spot+neighborhood", "neighborhood"])
@pytest.mark.parametrize("n_spots", [1, 2, 5])
def test_a_slide_with_fewer_spots_than_neighbours(fit, n_spots, conditioning):
    adata = datasets.simulated_visium(n_spots=n_spots, n_genes=10, seed=0)
    values = fit(adata, 1, conditioning=conditioning).get_completed_expression(return_numpy=True)
    assert np.isfinite(values).all()


def test_a_mask_of_zeros_and_ones(adata, fit):
    expected = complete(adata.copy(), fit, mask_layer="known")
    adata.layers["known"] = sparse.csr_matrix(adata.layers["known"].astype(np.int8))
    np.testing.assert_array_equal(complete(adata, fit, mask_layer="known"), expected)


def test_a_gene_without_a_count(adata, fit):
    dense = adata.X.toarray()
    dense[:, 3] = 0
    adata.X = dense
    values = complete(adata, fit)
    # known to be zero everywhere: its rate is small
    assert np.median(values[:, 3]) < np.median(values)


def test_customary_slide_column_is_used_with_a_warning(fit):
    adata = datasets.simulated_visium(n_spots=60, n_genes=N_GENES, n_samples=2, seed=0)
    with pytest.warns(UserWarning, match=r"adata.obs\['sample'\] names 2 slides.*pass sample_key='sample'"):
        LGDiST.setup_anndata(adata)
    crossing = adata.obsp["spatial_connectivities"].tocoo()
    samples = adata.obs["sample"].to_numpy()
    assert (samples[crossing.row] == samples[crossing.col]).all()
    assert LGDiST(adata, n_hidden=16).registry_["setup_args"]["sample_key"] == "sample"


@pytest.mark.parametrize("others, n_affected", [(0, 20), (0, None), (300, 20)])
def test_library_sizes_that_count_what_the_mask_hides(adata, others, n_affected):
    """They would raise rates: a library is scaled up by what is missing. Taken off, as pp.hold_out does, all is well."""
    counts, total = adata.X.toarray(), np.asarray(adata.X.sum(axis=1)).ravel()
    mask = np.random.default_rng(0).random(adata.shape) > 0.4
    mask[n_affected:] |= n_affected is not None
    mask[5] = False  # of a hidden spot it is the depth asked about
    adata.layers["known"] = mask
    adata.obs["total"] = total + np.random.default_rng(1).poisson(others * total / total.mean())
    n_warned = int(((counts * ~mask).sum(axis=1) > 0).sum()) - 1
    with pytest.warns(
        UserWarning, match=rf"adata.obs\['total'\] seems to count molecules that the mask hides, in {n_warned} "
    ):
        LGDiST.setup_anndata(adata, mask_layer="known", size_factor_key="total")
    adata.obs["total"] -= (counts * ~mask).sum(axis=1) * (np.arange(adata.n_obs) != 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        LGDiST.setup_anndata(adata, mask_layer="known", size_factor_key="total")


def test_setup_can_be_repeated(adata):
    for arguments in ({}, {"mask_layer": "known"}, {"layer": "counts"}):
        LGDiST.setup_anndata(adata, **arguments)
        registered = LGDiST(adata, n_hidden=16).registry_["setup_args"]
        # the last registration counts, and nothing of an earlier one is left
        assert {key: registered[key] for key in ("mask_layer", "layer")} == {
            "mask_layer": None,
            "layer": None,
            **arguments,
        }


# ---- construction, training, questions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gene_likelihood": "zinb"}, "gene_likelihood must be one of 'auto', 'nb', 'poisson', 'normal', got 'zinb'"),
        ({"conditioning": "image"}, "conditioning must be one of"),
        ({"n_hidden": 30, "n_heads": 4}, "n_hidden=30 must be a multiple of n_heads=4"),
        ({"n_denoiser_hidden": 33, "n_denoiser_heads": 3}, "n_denoiser_hidden=33 must be even"),
        ({"n_profiles": 0}, "n_profiles must be a whole number of at least 1, got 0"),
        ({"n_draws": 0}, "n_draws must be a whole number of at least 1, got 0"),
        ({"n_layers": 1.5}, "n_layers must be a whole number of at least 1, got 1.5"),
        ({"keep_at_least": 2}, "keep_at_least must be from 0 to 1, got 2"),
        ({"kl_weight": -1}, "kl_weight must be at least 0, got -1"),
        ({"set_aside_fraction": 0.0}, "set_aside_fraction must lie between 0 and 0.5"),
        ({"gene_likelihood": "normal"}, r"zeros are registered as data.*pp.observed_mask\(adata\).*mask_layer"),
    ],
)
def test_constructor_refuses(adata, arguments, message):
    LGDiST.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        LGDiST(adata, **arguments)


def test_a_mask_over_data_without_zeros_leaves_counts(adata):
    """No zero is called missing where there is none."""
    adata.X = sparse.csr_matrix(adata.X.toarray() + 1.0)
    adata.layers["known"] = np.random.default_rng(0).random(adata.shape) < 0.7
    LGDiST.setup_anndata(adata, mask_layer="known")
    assert LGDiST(adata).gene_likelihood_ == "nb"
    assert LGDiST(adata, gene_likelihood="normal").gene_likelihood_ == "normal"


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_counts_need_zeros(adata, likelihood):
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    pp.observed_mask(adata)
    LGDiST.setup_anndata(adata, mask_layer="observed")
    with pytest.raises(ValueError, match='mask calls every zero missing; use "normal" or "auto"'):
        LGDiST(adata, gene_likelihood=likelihood)
    assert LGDiST(adata).gene_likelihood_ == "normal"


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.get_completed_expression(),
        lambda model: model.get_normalized_expression(),
        lambda model: model.get_prediction_interval(0.9),
        lambda model: model.get_latent_representation(),
        lambda model: model.complete(),
        lambda model: model.train(stage="diffusion"),
    ],
)
def test_asking_before_training(adata, ask, snapshot):
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata, n_hidden=16)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=r"train\("):
        ask(model)
    assert snapshot(adata) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": "denoiser"}, "stage must be one of 'all', 'vae', 'diffusion', got 'denoiser'"),
        ({"validation_samples": ["A1"]}, "validation_samples needs slides; pass sample_key"),
        ({"n_rounds": 2}, "second round.*mask_layer"),
        ({"n_rounds": 3}, "n_rounds must be 1 or 2, got 3"),
        ({"max_epochs": 0}, "max_epochs must be a whole number of at least 1, got 0"),
    ],
)
def test_train_refuses(adata, arguments, message):
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata, n_hidden=16)
    with pytest.raises(ValueError, match=message):
        model.train(accelerator="cpu", **arguments)
    assert not model.is_trained_


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (["third"], "unknown slides 'third'; available: 'first', 'second'"),
        ("third", "unknown slides 'third'; available: 'first', 'second'"),
        (3, "unknown slides '3'; available: 'first', 'second'"),
        (["first", "second"], "names every slide; leave at least one"),
    ],
)
def test_validation_slides(adata, samples, message):
    two_slides(adata)
    pp.spatial_neighbors(adata, sample_key="slide")
    LGDiST.setup_anndata(adata, sample_key="slide")
    with pytest.raises(ValueError, match=message):
        LGDiST(adata, n_hidden=16).train(validation_samples=samples)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"gene_list": ["Actb", "gene_x"]},
            KeyError,
            "2 of 2 genes are not registered.*'Actb', 'gene_x'.*available: 'gene_",
        ),
        ({"n_samples": 0}, ValueError, "n_samples must be a whole number of at least 1, got 0"),
        ({"observed": "all"}, ValueError, "observed must be one of 'keep', 'model', got 'all'"),
        ({"fill": "none"}, ValueError, "fill must be one of 'zeros', 'masked', got 'none'"),
        ({"estimand": "mean"}, ValueError, "estimand must be one of 'rate', 'captured', got 'mean'"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ({"indices": [0, 9999]}, ValueError, "indices reach beyond the .* spots"),
        ({"indices": [True, False]}, ValueError, "indices is a mask of 2 values for .* spots"),
        ({"indices": ["spot_1"]}, ValueError, "adata.obs_names.get_indexer"),
        ({"indices": 5}, ValueError, "indices must be a list of positions of spots, or a bool mask, got 5"),
        ({"indices": slice(0, 5)}, ValueError, "indices must be a list of positions"),
        ({"seed": -1}, ValueError, r"seed must be a whole number from 0 to 2\*\*63 - 1, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be a whole number"),
        ({"seed": 1.5}, ValueError, "seed must be a whole number"),
        ({"n_steps": 2.5, "n_samples": 2}, ValueError, "n_steps must be a whole number of at least 1, got 2.5"),
    ],
)
def test_questions_refused(trained, arguments, error, message):
    with pytest.raises(error, match=message):
        trained.get_completed_expression(**arguments)
    if "n_samples" not in arguments:
        with pytest.raises(error, match=message):
            trained.get_prediction_interval(0.9, **arguments)


@pytest.mark.parametrize("library_size", ["latnt", None, "1e4", [1.0], -1.0, 0, np.nan, True])
def test_library_sizes_that_rates_cannot_have(trained, library_size):
    with pytest.raises(ValueError, match='library_size must be a positive number or "latent"'):
        trained.get_normalized_expression(library_size=library_size)


@pytest.mark.parametrize("level", [None, "0.9", [0.9], True])
def test_levels_are_numbers(trained, level):
    with pytest.raises(ValueError, match="level must be a number, such as 0.9"):
        trained.get_prediction_interval(level)


def test_completions_need_a_name_and_genes(trained):
    with pytest.raises(ValueError, match="layer_added must be the name to write, got None"):
        trained.complete(layer_added=None)
    with pytest.raises(ValueError, match="genes is empty"):
        trained.complete(trained.adata.copy(), genes=[])


def test_nothing_to_ask_about_is_said(trained, tmp_path):
    with pytest.raises(ValueError, match="adata has no spots"):
        trained.get_completed_expression(trained.adata[[]].copy())
    trained.save(tmp_path / "model")
    alone = LGDiST.load(tmp_path / "model", adata=False)
    for ask in (alone.complete, alone.get_completed_expression):
        with pytest.raises(ValueError, match="loaded without data; pass adata"):
            ask()


def test_other_data_must_have_a_mask_of_the_same_kind(trained, captured):
    with pytest.raises(ValueError, match='"normal" describes captured values only.*zeros are registered as data'):
        captured.get_completed_expression(trained.adata.copy())
    with pytest.raises(ValueError, match='"nb" needs zeros, but the mask calls every zero missing'):
        trained.complete(captured.adata.copy())


def test_other_data_get_the_graph_that_the_model_was_trained_on(fit, tissue):
    adata = tissue.copy()
    pp.spatial_neighbors(adata, n_neighbors=12)
    model, other = fit(adata, 1), adata.copy()
    del other.obsp["spatial_connectivities"], other.uns["spatial_neighbors"]
    expected = model.get_completed_expression(return_numpy=True)
    np.testing.assert_array_equal(model.get_completed_expression(other, return_numpy=True), expected)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.get_completed_expression(estimand="rate"),
        lambda model: model.get_prediction_interval(0.9, estimand="rate"),
        lambda model: model.complete(estimand="rate"),
        lambda model: model.get_normalized_expression(),
    ],
)
def test_captured_values_have_no_rate(captured, ask):
    with pytest.raises(ValueError, match="estimand='rate' needs a model of counts.*ask for 'captured'"):
        ask(captured)
    assert "completed" not in captured.adata.layers
