from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

from lgdist_scvi import datasets


def space_ranger(folder: Path, adata: ad.AnnData, named: bool = True, duplicated: bool = False) -> Path:
    """Write a slide as Space Ranger does."""
    folder.mkdir()
    counts = sparse.csc_matrix(adata.X.T.astype(np.int32))
    names = adata.var_names.to_list()
    if duplicated:
        names[1] = names[0]
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        if named:
            file.attrs["library_ids"] = np.array([b"section_1"])
        matrix = file.create_group("matrix")
        matrix["barcodes"] = adata.obs_names.to_numpy().astype("S")
        matrix["data"], matrix["indices"], matrix["indptr"] = counts.data, counts.indices, counts.indptr
        matrix["shape"] = np.array(counts.shape, dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i}" for i in range(adata.n_vars)], dtype="S")
        features["name"] = np.array(names, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")
    spatial = folder / "spatial"
    spatial.mkdir()
    positions = pd.DataFrame(
        {
            "barcode": adata.obs_names,
            "in_tissue": 1,
            "array_row": adata.obs["array_row"].to_numpy(),
            "array_col": adata.obs["array_col"].to_numpy(),
            "pxl_row_in_fullres": adata.obsm["spatial"][:, 1],
            "pxl_col_in_fullres": adata.obsm["spatial"][:, 0],
        }
    )
    positions.to_csv(spatial / "tissue_positions.csv", index=False)
    library = adata.uns["spatial"]["slide_1"]
    (spatial / "scalefactors_json.json").write_text(json.dumps(library["scalefactors"]))
    for name, image in library["images"].items():
        Image.fromarray(image).save(spatial / f"tissue_{name}_image.png")
    return folder


def test_h5ad(slide, tmp_path):
    slide.write_h5ad(tmp_path / "slide.h5ad")
    adata = datasets.read(str(tmp_path / "slide.h5ad"))
    assert (adata.X != slide.X).nnz == 0
    assert not adata.isbacked
    np.testing.assert_array_equal(adata.obsm["spatial"], slide.obsm["spatial"])


def test_anndata_zarr(slide, tmp_path):
    slide.write_zarr(tmp_path / "slide.zarr")
    assert (datasets.read(tmp_path / "slide.zarr").X != slide.X).nnz == 0


@pytest.mark.parametrize("named", [True, False])
def test_space_ranger(slide, tmp_path, named):
    folder = space_ranger(tmp_path / "outs", slide, named)
    for path in (folder, folder / "filtered_feature_bc_matrix.h5"):
        adata = datasets.read(path)
        assert list(adata.obs_names) == list(slide.obs_names)
        assert (adata.X != slide.X).nnz == 0
        np.testing.assert_allclose(adata.obsm["spatial"], slide.obsm["spatial"])
        library = "section_1" if named else "outs"
        np.testing.assert_array_equal(
            adata.uns["spatial"][library]["images"]["lowres"], slide.uns["spatial"]["slide_1"]["images"]["lowres"]
        )


def test_duplicated_gene_names_get_a_suffix(slide, tmp_path):
    with pytest.warns(
        UserWarning, match=r"1 gene names occur more than once \('gene_01'\); they get a suffix"
    ) as caught:
        adata = datasets.read(space_ranger(tmp_path / "outs", slide, duplicated=True))
    assert adata.var_names.is_unique
    assert not any("not unique" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("with_obsm", [True, False])
def test_spatialdata(slide, tmp_path, with_obsm):
    import spatialdata
    from spatialdata.models import ShapesModel, TableModel

    order = np.random.default_rng(0).permutation(slide.n_obs)
    circles = ShapesModel.parse(slide.obsm["spatial"][order], geometry=0, radius=27.5, index=order)
    table = ad.AnnData(slide.X, obs=pd.DataFrame(index=slide.obs_names), var=slide.var[[]])
    if with_obsm:
        table.obsm["spatial"] = slide.obsm["spatial"]
    table.obs["region"] = pd.Categorical(["spots"] * slide.n_obs)
    table.obs["instance"] = np.arange(slide.n_obs)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    other = ad.AnnData(np.ones((2, 2), dtype=np.float32))
    spatialdata.SpatialData(shapes={"spots": circles}, tables={"table": table}).write(tmp_path / "one.zarr")
    adata = datasets.read(tmp_path / "one.zarr")
    assert (adata.X != slide.X).nnz == 0
    np.testing.assert_allclose(adata.obsm["spatial"], slide.obsm["spatial"])

    spatialdata.SpatialData(shapes={"spots": circles}, tables={"a": table, "b": other}).write(tmp_path / "two.zarr")
    assert datasets.read(tmp_path / "two.zarr", table="a").shape == slide.shape
    with pytest.raises(KeyError, match="has 2 tables .*pass table="):
        datasets.read(tmp_path / "two.zarr")
    with pytest.raises(KeyError, match="'c' is not a table of 'two.zarr'; available: 'a', 'b'"):
        datasets.read(tmp_path / "two.zarr", table="c")


def test_what_is_read_is_checked(slide, tmp_path):
    path = tmp_path / "slide.h5ad"
    slide.layers["counts"] = slide.X.copy()
    slide.X = np.log1p(slide.X)
    slide.write_h5ad(path)
    with pytest.raises(ValueError, match="entries of adata.X are not whole numbers; .*layer="):
        datasets.read(path)
    assert datasets.read(path, layer="counts").shape == slide.shape
    with pytest.raises(KeyError, match="'raw' not found in adata.layers; available: .*'counts'"):
        datasets.read(path, layer="raw")
    with pytest.raises(KeyError, match="'slide' not found in adata.obs"):
        datasets.read(path, layer="counts", sample_key="slide")
    del slide.obsm["spatial"]
    slide.write_h5ad(path)
    with pytest.raises(KeyError, match="'spatial' not found in adata.obsm; available: none"):
        datasets.read(path, layer="counts")


def test_slides_that_overlap(tmp_path):
    from lgdist_scvi.datasets import simulated_visium

    simulated_visium(60, 10, n_samples=2).write_h5ad(tmp_path / "two.h5ad")
    adata = ad.read_h5ad(tmp_path / "two.h5ad")
    adata.obsm["spatial"][30:] = adata.obsm["spatial"][:30]
    adata.write_h5ad(tmp_path / "two.h5ad")
    assert datasets.read(tmp_path / "two.h5ad", sample_key="sample").n_obs == 60
    with pytest.raises(ValueError, match="60 of 60 spots share their coordinates .*pass sample_key"):
        datasets.read(tmp_path / "two.h5ad")


def test_paths(slide, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder .*nothing.h5ad"):
        datasets.read(tmp_path / "nothing.h5ad")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match="cannot read 'table.csv'; expected an .h5ad file"):
        datasets.read(tmp_path / "table.csv")
    folder = space_ranger(tmp_path / "outs", slide)
    (folder / "spatial" / "tissue_positions.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match="not a complete Space Ranger folder; missing: 'spatial/tissue_positions.csv'"
    ):
        datasets.read(folder)


def test_real_slide(shared_data):
    adata = datasets.read(shared_data / "mouse_muscle_Vis7B_5dpi.h5ad")
    assert adata.shape == (1011, 14266)
