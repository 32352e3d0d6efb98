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


def space_ranger(
    folder: Path,
    adata: ad.AnnData,
    named: bool = True,
    duplicated: bool = False,
    counts_file: str = "filtered_feature_bc_matrix.h5",
    positions_file: str = "tissue_positions.csv",
    in_tissue: np.ndarray | int = 1,
) -> Path:
    """Write a slide as Space Ranger does."""
    folder.mkdir(parents=True)
    counts = sparse.csc_matrix(adata.X.T.astype(np.int32))
    names = adata.var_names.to_list()
    if duplicated:
        names[1] = names[0]
    with h5py.File(folder / counts_file, "w") as file:
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
            "in_tissue": in_tissue,
            "array_row": adata.obs["array_row"].to_numpy(),
            "array_col": adata.obs["array_col"].to_numpy(),
            "pxl_row_in_fullres": adata.obsm["spatial"][:, 1],
            "pxl_col_in_fullres": adata.obsm["spatial"][:, 0],
        }
    )
    positions.to_csv(spatial / positions_file, index=False, header="list" not in positions_file)
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


def test_space_ranger_of_the_first_version(slide, tmp_path):
    adata = datasets.read(space_ranger(tmp_path / "outs", slide, positions_file="tissue_positions_list.csv"))
    np.testing.assert_allclose(adata.obsm["spatial"], slide.obsm["spatial"])
    np.testing.assert_array_equal(adata.obs["array_col"], slide.obs["array_col"])


def test_space_ranger_above_outs_and_without_images(slide, tmp_path):
    folder = space_ranger(tmp_path / "run" / "outs", slide)
    for part in ("tissue_hires_image.png", "tissue_lowres_image.png"):
        (folder / "spatial" / part).unlink(missing_ok=True)
    adata = datasets.read(tmp_path / "run")
    assert (adata.X != slide.X).nnz == 0
    library = adata.uns["spatial"]["section_1"]
    assert library["images"] == {} and library["scalefactors"] == slide.uns["spatial"]["slide_1"]["scalefactors"]
    (folder / "spatial" / "scalefactors_json.json").unlink()
    assert datasets.read(folder).n_obs == slide.n_obs


def test_spots_outside_the_tissue_are_left_out(slide, tmp_path):
    in_tissue = (np.arange(slide.n_obs) % 3 > 0).astype(int)
    folder = space_ranger(tmp_path / "outs", slide, counts_file="raw_feature_bc_matrix.h5", in_tissue=in_tissue)
    with pytest.warns(UserWarning, match=r"50 of 150 spots outside the tissue \(in_tissue is 0\) are left out"):
        adata = datasets.read(folder)
    assert list(adata.obs_names) == list(slide.obs_names[in_tissue == 1])
    assert (adata.X != slide.X[in_tissue == 1]).nnz == 0


def test_positions_of_another_run_are_refused(slide, tmp_path):
    folder = space_ranger(tmp_path / "outs", slide)
    file = folder / "spatial" / "tissue_positions.csv"
    pd.read_csv(file).iloc[10:].to_csv(file, index=False)
    with pytest.raises(ValueError, match="10 of 150 barcodes of .* are not in 'tissue_positions.csv'"):
        datasets.read(folder)


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
    (tmp_path / "two.zarr").rename(tmp_path / "two")  # a folder tells what it holds, whatever its name
    assert datasets.read(tmp_path / "two", table="a").shape == slide.shape

    sdata = spatialdata.SpatialData(shapes={"spots": circles}, tables={"a": table, "b": other})
    adata = datasets.read(sdata, table="a")
    np.testing.assert_allclose(adata.obsm["spatial"], slide.obsm["spatial"])
    assert ("spatial" in sdata.tables["a"].obsm) == with_obsm
    adata.X.data[:] = 0
    assert sdata.tables["a"].X.sum() > 0
    with pytest.raises(KeyError, match="table 'b' of 'SpatialData' has no obsm.* and annotates no shapes"):
        datasets.read(sdata, table="b")
    del sdata.shapes["spots"]
    if not with_obsm:
        with pytest.raises(KeyError, match="'SpatialData' has no element 'spots'"):
            datasets.read(sdata, table="a")


def test_mudata(slide, tmp_path):
    import mudata

    whole = slide.copy()
    del whole.obsm["spatial"], whole.uns["spatial"]
    proteins = ad.AnnData(np.ones((slide.n_obs, 2), dtype=np.float32), obs=slide.obs[[]])
    mdata = mudata.MuData({"rna": whole, "protein": proteins})
    mdata.obsm["spatial"] = slide.obsm["spatial"]
    mdata.write(tmp_path / "both.h5mu")
    for source in (mdata, tmp_path / "both.h5mu"):
        adata = datasets.read(source, modality="rna")
        assert (adata.X != slide.X).nnz == 0
        np.testing.assert_array_equal(adata.obsm["spatial"], slide.obsm["spatial"])
        with pytest.raises(KeyError, match=r"has 2 modalities \('rna', 'protein'\); pass modality="):
            datasets.read(source)
        with pytest.raises(KeyError, match="'atac' is not a modality of .*; available: 'rna', 'protein'"):
            datasets.read(source, modality="atac")
    assert "spatial" not in mdata["rna"].obsm
    assert datasets.read(mudata.MuData({"rna": slide})).shape == slide.shape


def test_objects(slide):
    adata = datasets.read(slide)
    assert (adata.X != slide.X).nnz == 0 and adata is not slide
    with pytest.raises(
        ValueError, match="cannot read a DataFrame; expected a path, an AnnData, a MuData or a SpatialData"
    ):
        datasets.read(slide.obs)


@pytest.mark.parametrize(
    ("option", "of"),
    [({"table": "a"}, "SpatialData"), ({"modality": "rna"}, "MuData"), ({"bin_size": 8}, "SpatialData, Space Ranger")],
)
def test_options_of_other_formats_are_refused(slide, option, of):
    with pytest.raises(ValueError, match=f"is for {of}, but this is AnnData"):
        datasets.read(slide, **option)


def test_counts_in_raw(slide, tmp_path):
    normalised = slide[:, 5:40].copy()
    normalised.raw = slide
    normalised.X = normalised.X.log1p()
    normalised.layers.clear()
    normalised.write_h5ad(tmp_path / "raw.h5ad")
    with pytest.warns(UserWarning, match="adata.X holds no counts, adata.raw does: X is now the counts"):
        adata = datasets.read(tmp_path / "raw.h5ad")
    assert (adata.X != slide.X[:, 5:40]).nnz == 0
    assert (adata.layers["X"] != normalised.X).nnz == 0
    # no counts there, or of other genes: what is wrong with X is said
    for raw in (normalised, slide[:, :10]):
        other = normalised.copy()
        other.raw = raw
        with pytest.raises(ValueError, match="entries of adata.X are not whole numbers"):
            datasets.read(other)
    # counts in X stay
    slide.raw = slide
    assert "X" not in datasets.read(slide).layers


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
    assert datasets.read(tmp_path / "two.h5ad").n_obs == 60  # the customary column tells them apart
    adata.obs = adata.obs.rename(columns={"sample": "piece"})
    adata.write_h5ad(tmp_path / "two.h5ad")
    assert datasets.read(tmp_path / "two.h5ad", sample_key="piece").n_obs == 60
    with pytest.raises(ValueError, match="60 of 60 spots share their coordinates .*pass sample_key"):
        datasets.read(tmp_path / "two.h5ad")


def test_paths(slide, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder .*nothing.h5ad"):
        datasets.read(tmp_path / "nothing.h5ad")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match="cannot read 'table.csv'; expected an .h5ad or .h5mu file"):
        datasets.read(tmp_path / "table.csv")
    folder = space_ranger(tmp_path / "outs", slide)
    (folder / "spatial" / "tissue_positions.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match="not a complete Space Ranger folder; missing: 'spatial/tissue_positions.csv'"
    ):
        datasets.read(folder)


def test_files_that_are_not_whole(slide, tmp_path):
    folder = space_ranger(tmp_path / "outs", slide)
    (folder / "filtered_feature_bc_matrix.h5").write_bytes(b"")
    with pytest.raises(
        ValueError, match="filtered_feature_bc_matrix.h5' is no count matrix of Space Ranger, or not a whole"
    ):
        datasets.read(folder)


def test_real_slide(shared_data):
    adata = datasets.read(shared_data / "mouse_muscle_Vis7B_5dpi.h5ad")
    assert adata.shape == (1011, 14266)
