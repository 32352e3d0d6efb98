"""Visium HD as Space Ranger 3 and spatialdata-io write it, in memory and left on disk."""

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

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi.datasets import _count_matrix, _stores

MICRONS_PER_PIXEL = 0.2738
N_GENES = 40


def bins(width: int, side: int, seed: int = 0) -> ad.AnnData:
    """All bins of a capture area, rotated a little against the image; those of a disc are on tissue, some of them without counts."""
    rng = np.random.default_rng(seed)
    row, column = (part.ravel() for part in np.mgrid[:side, :side])
    names = [f"s_{width:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
    in_tissue = (np.hypot(row - side / 2, column - side / 2) < 0.45 * side).astype(np.int32)
    counts = rng.poisson(0.4, (side**2, N_GENES)) * in_tissue[:, None] * (rng.random((side**2, 1)) > 0.1)
    pixels = (np.column_stack([column, row]) + 0.5) * width / MICRONS_PER_PIXEL
    angle = np.deg2rad(1.3)
    pixels = pixels @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]] + 2000
    obs = pd.DataFrame({"in_tissue": in_tissue, "array_row": row, "array_col": column}, index=names)
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var, obsm={"spatial": pixels})


def write_bins(folder: Path, adata: ad.AnnData, width: int) -> None:
    """One folder ``square_XXXum`` with three proteins beside the genes; the filtered matrix holds what is on tissue."""
    (folder / "spatial").mkdir(parents=True)
    kept = adata[adata.obs["in_tissue"] == 1]
    proteins = sparse.csr_matrix(np.full((kept.n_obs, 3), 9))
    counts = sparse.hstack([kept.X[:, :10], proteins, kept.X[:, 10:]], format="csr").astype(np.int32)
    names = [*kept.var_names[:10], "CD3", "CD8", "CD20", *kept.var_names[10:]]
    types = ["Antibody Capture" if name.startswith("CD") else "Gene Expression" for name in names]
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        file.attrs["library_ids"] = np.array([b"slide_1"])
        matrix = file.create_group("matrix")
        matrix["barcodes"] = kept.obs_names.to_numpy().astype("S")
        for name in ("data", "indices", "indptr"):
            matrix.create_dataset(name, data=getattr(counts, name), compression="gzip", chunks=True)
        matrix["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        features["_all_tag_keys"] = np.array([b"genome"])
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(names))], dtype="S")
        features["name"] = np.array(names, dtype="S")
        features["feature_type"] = np.array(types, dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(names), dtype="S")
    positions = adata.obs.assign(
        pxl_row_in_fullres=adata.obsm["spatial"][:, 1], pxl_col_in_fullres=adata.obsm["spatial"][:, 0]
    )
    positions = positions.reset_index(names="barcode").sample(frac=1, random_state=0)
    positions.to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False)
    factors = {
        "spot_diameter_fullres": width / MICRONS_PER_PIXEL,
        "bin_size_um": float(width),
        "microns_per_pixel": MICRONS_PER_PIXEL,
        "regist_target_img_scalef": 0.2,
        "tissue_lowres_scalef": 0.02,
        "fiducial_diameter_fullres": 1200.0,
        "tissue_hires_scalef": 0.2,
    }
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    for name in ("hires", "lowres"):
        Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(folder / "spatial" / f"tissue_{name}_image.png")


SIDES = {2: 40, 8: 22, 16: 10}


@pytest.fixture(scope="module")
def squares() -> dict[int, ad.AnnData]:
    return {width: bins(width, side) for width, side in SIDES.items()}


@pytest.fixture(scope="module")
def outs(tmp_path_factory, squares) -> Path:
    folder = tmp_path_factory.mktemp("run") / "outs"
    for width, adata in squares.items():
        write_bins(folder / "binned_outputs" / f"square_{width:03d}um", adata, width)
    (folder / "spatial").mkdir()
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_count_matrix, "_ROWS", 50)


def expected(adata: ad.AnnData) -> ad.AnnData:
    return adata[(adata.obs["in_tissue"] == 1) & (np.asarray(adata.X.sum(axis=1)).ravel() > 0)]


def read(*args, **kwargs) -> ad.AnnData:
    with pytest.warns(UserWarning, match="bins without counts are left out"):
        return datasets.read(*args, **kwargs)


def same(adata: ad.AnnData, truth: ad.AnnData) -> None:
    x = adata.X.compute() if hasattr(adata.X, "dask") else adata.X
    assert sparse.issparse(x) and x.dtype == np.float32
    assert list(adata.obs_names) == list(truth.obs_names) and list(adata.var_names) == list(truth.var_names)
    assert (x != truth.X).nnz == 0
    np.testing.assert_allclose(adata.obsm["spatial"], truth.obsm["spatial"])
    for column in ("array_row", "array_col"):
        np.testing.assert_array_equal(adata.obs[column], truth.obs[column])


def test_widths(outs, squares):
    square = outs / "binned_outputs" / "square_016um"
    for path, width, options in (
        (outs, 8, {}),
        (outs.parent, 8, {}),
        (outs / "binned_outputs", 8, {}),
        (outs, 2, {"bin_size": 2}),
        (outs, 16, {"bin_size": 16}),
        (square, 16, {}),
        (square, 16, {"bin_size": 16}),
        (square / "filtered_feature_bc_matrix.h5", 16, {}),
    ):
        same(read(path, **options), expected(squares[width]))
    with pytest.raises(KeyError, match="there are no bins of 4 micrometres in .*outs'; available: 2, 8, 16"):
        datasets.read(outs, bin_size=4)
    with pytest.raises(KeyError, match="there are no bins of 8 micrometres in .*square_016um'; available: 16"):
        datasets.read(square, bin_size=8)


def test_what_is_read(outs, squares):
    adata = read(outs)
    library = adata.uns["spatial"]["slide_1"]
    assert library["scalefactors"]["bin_size_um"] == 8
    assert library["scalefactors"]["microns_per_pixel"] == MICRONS_PER_PIXEL
    assert set(library["images"]) == {"hires", "lowres"}
    assert set(adata.var["feature_types"]) == {"Gene Expression"}
    assert adata.var["gene_ids"].iloc[10] == "ENSG00000000013"  # behind the proteins
    assert adata.obs["in_tissue"].eq(1).all()


def test_only_other_widths(tmp_path, squares):
    for width in (2, 16):
        write_bins(tmp_path / "binned_outputs" / f"square_{width:03d}um", squares[width], width)
    with pytest.raises(KeyError, match="is of Visium HD, with bins of 2, 16 micrometres; pass bin_size="):
        datasets.read(tmp_path)


@pytest.mark.parametrize(("n_neighbors", "ring"), [(4, 1.0), (8, np.sqrt(2))])
def test_bins_are_a_square_lattice(outs, n_neighbors, ring):
    adata = read(outs)
    pp.spatial_neighbors(adata, n_neighbors=n_neighbors)
    params = adata.uns["spatial_neighbors"]["params"]
    assert params["coord_type"] == "grid" and list(params["geometry"]) == ["square"]
    # in steps of the array, every bin has all bins of its ring that hold counts, and no other
    places = {
        place: spot for spot, place in enumerate(zip(adata.obs["array_row"], adata.obs["array_col"], strict=True))
    }
    graph = adata.obsp["spatial_connectivities"]
    steps = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if 0 < np.hypot(r, c) <= ring + 0.01]
    for (row, column), spot in places.items():
        around = {places[row + r, column + c] for r, c in steps if (row + r, column + c) in places}
        assert set(graph[spot].indices) == around


def test_without_pyarrow(outs, monkeypatch):
    def without(*_, **__):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", without)
    with pytest.raises(ImportError, match="'tissue_positions.parquet', .* needs pyarrow; pip install pyarrow"):
        datasets.read(outs)


def test_counts_stay_in_the_file(outs, squares, small_blocks):
    adata = read(outs, lazy=True)
    assert adata.X.numblocks[0] > 3
    same(adata, expected(squares[8]))


def test_store(outs, squares, tmp_path, small_blocks, monkeypatch):
    largest, rows = [], _count_matrix._rows

    def watched(path, genes, start, stop):
        largest.append(stop - start)
        return rows(path, genes, start, stop)

    monkeypatch.setattr(_count_matrix, "_rows", watched)
    adata = read(outs, store=tmp_path / "slide.zarr")
    assert len(largest) > 10 and max(largest) == 50
    again = datasets.read(tmp_path / "slide.zarr", lazy=True)
    for one in (adata, again, datasets.read(tmp_path / "slide.zarr")):
        same(one, expected(squares[8]))
        assert one.uns["spatial"]["slide_1"]["scalefactors"]["bin_size_um"] == 8
    assert hasattr(adata.X, "dask") and hasattr(again.X, "dask")
    assert (ad.experimental.read_lazy(tmp_path / "slide.zarr").X.compute() != expected(squares[8]).X).nnz == 0
    with pytest.raises(
        FileExistsError, match=r"slide.zarr' exists; read it with datasets.read\(.*, lazy=True\), or delete"
    ):
        datasets.read(outs, store=tmp_path / "slide.zarr")
    LGDiST.setup_anndata(again)


def test_an_interrupted_store_is_none(outs, squares, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="left out"):
        patch.setattr(_stores, "open_lazily", interrupt)
        patch.setattr(ad.AnnData, "write_zarr", lambda adata, path: (Path(path).mkdir(), interrupt()))
        datasets.read(outs, store=tmp_path / "slide.zarr")
    assert not (tmp_path / "slide.zarr").exists()
    same(read(outs, store=tmp_path / "slide.zarr"), expected(squares[8]))
    assert [path.name for path in tmp_path.iterdir()] == ["slide.zarr"]


def interrupt(*_):
    raise KeyboardInterrupt


def test_what_stays_on_disk_is_checked(squares, tmp_path, small_blocks):
    adata = expected(squares[8]).copy()
    adata.layers["scaled"] = adata.X * np.float32(0.5)
    for path, write in ((tmp_path / "a.zarr", adata.write_zarr), (tmp_path / "a.h5ad", adata.write_h5ad)):
        write(path)
        same(datasets.read(path, lazy=True), adata)
        with pytest.raises(ValueError, match=r"entries of adata.layers\['scaled'\] are not whole numbers"):
            datasets.read(path, lazy=True, layer="scaled")
    with pytest.raises(ValueError, match="lazy=True is for paths, but this is an object, AnnData"):
        datasets.read(adata, lazy=True)


def test_counts_stored_by_genes(squares, tmp_path, monkeypatch):
    adata = expected(squares[8]).copy()
    adata.X, adata.layers["twice"] = adata.X.tocsc(), (adata.X * 2).tocsc()
    adata.write_zarr(tmp_path / "csc.zarr")
    adata.write_h5ad(tmp_path / "csc.h5ad")
    monkeypatch.setattr(_stores, "_ENTRIES", adata.X.nnz // 5)
    for source in ("csc.zarr", "csc.h5ad"):
        with pytest.raises(ValueError, match=rf"adata.X of '{source}' is stored by genes \(csc\).*read\(path, store="):
            datasets.read(tmp_path / source, lazy=True)
        stored = datasets.read(tmp_path / source, store=tmp_path / f"of_{source}.zarr")
        same(stored, expected(squares[8]))
        assert (stored.layers["twice"].compute() != adata.layers["twice"]).nnz == 0
    same(datasets.read(adata, store=tmp_path / "object.zarr"), expected(squares[8]))
    assert adata.X.format == "csc"


@pytest.fixture(scope="module")
def spatialdata_store(tmp_path_factory, squares) -> Path:
    import spatialdata
    from spatialdata.models import ShapesModel, TableModel

    tables, shapes = {}, {}
    for width, whole in squares.items():
        adata, region = whole[whole.obs["in_tissue"] == 1].copy(), f"slide_1_square_{width:03d}um"
        adata.obs["location_id"] = np.arange(adata.n_obs)
        adata.obs["region"] = pd.Categorical([region] * adata.n_obs)
        shapes[region] = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=4, index=adata.obs["location_id"])
        tables[f"square_{width:03d}um"] = TableModel.parse(
            adata, region=region, region_key="region", instance_key="location_id"
        )
    path = tmp_path_factory.mktemp("spatialdata") / "slide.zarr"
    spatialdata.SpatialData(tables=tables, shapes=shapes).write(path)
    return path


def test_spatialdata(spatialdata_store, squares):
    import spatialdata

    for source in (spatialdata_store, spatialdata.read_zarr(spatialdata_store)):
        for width, options in ((8, {}), (2, {"bin_size": 2}), (16, {"table": "square_016um"})):
            same(read(source, **options), expected(squares[width]))
        with pytest.raises(KeyError, match="there are no bins of 4 micrometres in .*; available: 2, 8, 16"):
            datasets.read(source, bin_size=4)
        with pytest.raises(ValueError, match="table='square_008um' and bin_size=8 both choose a table of"):
            datasets.read(source, bin_size=8, table="square_008um")


def test_spatialdata_on_disk(spatialdata_store, squares, tmp_path, small_blocks):
    adata = read(spatialdata_store, bin_size=8, lazy=True)
    assert hasattr(adata.X, "dask")
    same(adata, expected(squares[8]))
    same(read(spatialdata_store, store=tmp_path / "slide.zarr"), expected(squares[8]))
