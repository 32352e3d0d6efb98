"""Data that change after they were registered, attempts that fail, and what is taken for slides."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from anndata import AnnData

from lgdist_scvi import LGDiST, datasets, pp

N_SPOTS, N_GENES = 60, 12


@pytest.fixture
def adata() -> AnnData:
    adata = datasets.simulated_visium(n_spots=N_SPOTS, n_genes=N_GENES, seed=0)
    del adata.obs["sample"]
    pp.spatial_neighbors(adata)
    return adata


def rename(adata):
    adata.var_names = [f"other_{name}" for name in adata.var_names]


@pytest.mark.parametrize("change", [rename, lambda adata: adata._inplace_subset_var(np.arange(3, N_GENES))])
def test_registered_genes_must_stay(adata, fit, change, snapshot):
    model = fit(adata, 1)
    model.complete(silent=True)
    change(adata)
    before = snapshot(adata)
    for ask in (model.get_completed_expression, model.complete, lambda: model.train(max_epochs=1)):
        with pytest.raises(
            ValueError, match=r"of the 12 registered genes \(.*\) are no longer in adata.var_names; .*setup_anndata"
        ):
            ask()
    assert snapshot(adata) == before


def test_genes_may_not_be_filtered_between_setup_and_model(adata):
    LGDiST.setup_anndata(adata)
    adata._inplace_subset_var(np.arange(5))
    with pytest.raises(ValueError, match="7 of the 12 registered genes"):
        LGDiST(adata)


def turned(adata):
    adata.obsm["spatial"] = np.array(adata.obsm["spatial"])[::-1]


def permuted(adata):
    adata.X = adata.X[::-1]


def permuted_in_place(adata):
    adata.X.data[:] = adata.X.data[::-1].copy()


def larger(adata):
    adata.obs["total"] *= 2


def shown(adata):
    adata.layers["known"][0] = True


def prefilled(adata):
    adata.layers["first"][0, 0] += 1


def gone(attribute, key):
    return lambda adata: getattr(adata, attribute).pop(key)


CHANGES = {
    "counts permuted": (permuted, "its spots, counts, .* are others now"),
    "counts permuted in place": (permuted_in_place, "its spots, counts, .* are others now"),
    "names permuted": (lambda adata: setattr(adata, "var_names", list(adata.var_names[::-1])), "are others now"),
    "spots left out": (lambda adata: adata._inplace_subset_obs(np.arange(40)), "are others now"),
    "coordinates turned": (turned, "graph or coordinates are others now"),
    "another graph": (lambda adata: pp.spatial_neighbors(adata, 4), "graph or coordinates are others now"),
    "library sizes": (larger, "library sizes, .* are others now"),
    "mask": (shown, "mask, .* are others now"),
    "values of neighbours": (prefilled, "are others now"),
    "slides": (
        lambda adata: adata.obs.insert(0, "slide", adata.obs.pop("slide").to_numpy()[::-1]),
        "join spots of different",
    ),
    "no graph": (gone("obsp", "spatial_connectivities"), "'spatial_connectivities' not found in adata.obsp"),
    "no coordinates": (gone("obsm", "spatial"), "'spatial' not found in adata.obsm"),
    "no library sizes": (gone("obs", "total"), "'total' not found in adata.obs"),
    "no mask": (gone("layers", "known"), "'known' not found in adata.layers"),
    "no values of neighbours": (gone("layers", "first"), "'first' not found in adata.layers"),
    "no slides": (gone("obs", "slide"), "'slide' not found in adata.obs"),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("when", ["before the model", "before training"])
def test_data_may_not_change_after_setup(adata, case, when):
    change, message = CHANGES[case]
    adata.obs["slide"] = np.where(np.arange(N_SPOTS) < 20, "one", "two")
    pp.spatial_neighbors(adata, sample_key="slide")
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() + 100
    adata.layers["known"] = np.random.default_rng(0).random(adata.shape) < 0.9
    adata.layers["first"] = np.ones(adata.shape, dtype=np.float32)
    keys = {"sample_key": "slide", "size_factor_key": "total", "mask_layer": "known", "prefill_layer": "first"}
    LGDiST.setup_anndata(adata, **keys)
    model = LGDiST(adata) if when == "before training" else None
    change(adata)
    with pytest.raises(ValueError, match=f"^adata was changed after setup_anndata.*{message}"):
        LGDiST(adata) if model is None else model.train(max_epochs=1)


def without_graph(adata):
    del adata.obsp["spatial_connectivities"], adata.obsp["spatial_distances"], adata.uns["spatial_neighbors"]


def test_a_failed_setup_leaves_no_graph(adata):
    without_graph(adata)
    for wrong in ({"layer": "typo"}, {"mask_layer": "typo"}, {"size_factor_key": "typo"}):
        with pytest.raises(KeyError, match="typo"):
            LGDiST.setup_anndata(adata, **wrong)
        assert not len(adata.obsp)
        assert "spatial_neighbors" not in adata.uns
    LGDiST.setup_anndata(adata)
    assert "spatial_connectivities" in adata.obsp


def test_a_failed_question_leaves_no_graph_in_other_data(trained):
    other = trained.adata.copy()
    without_graph(other)
    del other.layers["known"]
    with pytest.raises(KeyError, match="known"):
        trained.get_completed_expression(other)
    assert not len(other.obsp)


def test_a_graph_of_other_coordinates_is_named(adata):
    adata.obsm["pixels"] = adata.obsm["spatial"] * 3.0
    with pytest.warns(
        UserWarning, match=r"was built from adata.obsm\['spatial'\] and is used as it is; .*spatial_key='pixels'"
    ):
        LGDiST.setup_anndata(adata, spatial_key="pixels")


def test_a_column_of_spot_names_names_no_slides(adata):
    adata.obs["sample"] = adata.obs_names.to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LGDiST.setup_anndata(adata)
    adata.obs["sample"] = np.where(np.arange(N_SPOTS) < 30, "one", None)
    with pytest.raises(ValueError, match="30 of 60 spots have no value.*because of its name; rename it"):
        LGDiST.setup_anndata(adata)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_data_without_spots_or_genes(shape):
    empty = AnnData(np.zeros(shape, dtype=np.float32))
    empty.obsm["spatial"] = np.zeros((shape[0], 2)) + np.arange(shape[0])[:, None]
    with pytest.raises(ValueError, match=f"adata has 0 {'spots' if shape[0] == 0 else 'genes'}"):
        LGDiST.setup_anndata(empty)


def test_setup_needs_an_anndata(adata):
    with pytest.raises(TypeError, match="needs an AnnData, got csr_matrix; store the counts in its X"):
        LGDiST.setup_anndata(adata.X)
