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
