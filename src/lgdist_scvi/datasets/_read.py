"""Reading slides of any common format, checked."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._anndata import get_coordinates, get_counts
from lgdist_scvi._checks import list_names

if TYPE_CHECKING:
    from anndata import AnnData

_COUNTS_FILE = "filtered_feature_bc_matrix.h5"


def read(
    path: str | PathLike[str],
    *,
    layer: str | None = None,
    sample_key: str | None = None,
    spatial_key: str = "spatial",
    table: str | None = None,
) -> AnnData:
    """Read a slide and check that it holds what this package needs: raw counts and coordinates.

    Parameters
    ----------
    path
        - an ``.h5ad`` file or an AnnData ``.zarr`` store;
        - a Space Ranger output folder, or the ``.h5`` count matrix in it (:func:`squidpy.read.visium`);
        - a SpatialData ``.zarr`` store. Its table is read; where the table has no coordinates, they are the centroids of
          the elements that it annotates.
    layer
        Layer that holds raw counts; ``None`` means `X`.
    sample_key
        Column of `obs` with the slide; spots of one slide may not share a place.
    spatial_key
        Key of `obsm` with the coordinates.
    table
        Table of a SpatialData store; needed if it has more than one.

    Returns
    -------
    The annotated data, (n_obs, n_vars), in memory. Duplicated gene names get a suffix, with a warning.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`, or a Space Ranger folder is incomplete.
    KeyError
        If the layer, the coordinates or the table are absent.
    ValueError
        If the format is not known, the values are not counts, or the coordinates are not usable.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
    adata = _read(path, spatial_key, table)
    if not adata.var_names.is_unique:
        duplicated = adata.var_names[adata.var_names.duplicated()].unique()
        warnings.warn(
            f"{len(duplicated):,} gene names occur more than once ({list_names(duplicated)}); they get a suffix",
            UserWarning,
            stacklevel=2,
        )
        adata.var_names_make_unique()
    get_coordinates(adata, spatial_key, sample_key)
    get_counts(adata, layer)
    return adata


def _read(path: Path, spatial_key: str, table: str | None) -> AnnData:
    import anndata

    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path)
    if path.suffix == ".h5":
        return _read_space_ranger(path.parent, path.name)
    if path.suffix == ".zarr":
        import zarr

        if zarr.open_group(str(path), mode="r").attrs.get("encoding-type") == "anndata":
            return anndata.read_zarr(path)
        return _read_spatialdata(path, spatial_key, table)
    if path.is_dir():
        return _read_space_ranger(path, _COUNTS_FILE)
    raise ValueError(
        f"cannot read {path.name!r}; expected an .h5ad file, a Space Ranger folder or its .h5 file, or a .zarr store"
    )


def _read_space_ranger(folder: Path, counts_file: str) -> AnnData:
    import h5py
    import squidpy as sq

    needed = [counts_file, "spatial/scalefactors_json.json", "spatial/tissue_hires_image.png"]
    needed.append("spatial/tissue_lowres_image.png")
    missing = [name for name in needed if not (folder / name).exists()]
    if not any((folder / "spatial" / name).exists() for name in ("tissue_positions.csv", "tissue_positions_list.csv")):
        missing.append("spatial/tissue_positions.csv")
    if missing:
        raise FileNotFoundError(
            f"{str(folder)!r} is not a complete Space Ranger folder; missing: {list_names(missing)} "
            "(coordinates come from its 'spatial' folder)"
        )
    with h5py.File(folder / counts_file) as file:
        named = "library_ids" in file.attrs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")  # said once, by read()
        return sq.read.visium(folder, counts_file=counts_file, library_id=None if named else folder.resolve().name)


def _read_spatialdata(path: Path, spatial_key: str, table: str | None) -> AnnData:
    import spatialdata

    sdata = spatialdata.read_zarr(path)
    names = list(sdata.tables)
    if table is None and len(names) != 1:
        raise KeyError(f"{path.name!r} has {len(names)} tables ({list_names(names) or 'none'}); pass table=...")
    if table is not None and table not in names:
        raise KeyError(f"{table!r} is not a table of {path.name!r}; available: {list_names(names) or 'none'}")
    adata = sdata.tables[names[0] if table is None else table]
    if spatial_key not in adata.obsm:
        adata.obsm[spatial_key] = _centroids(sdata, adata)
    return adata


def _centroids(sdata: Any, adata: AnnData) -> np.ndarray:
    """Find the centroids (x, y) of the elements that each row of a table annotates, (n_obs, 2)."""
    from spatialdata import get_centroids
    from spatialdata.models import get_table_keys
    from spatialdata.transformations import get_transformation

    _, region_key, instance_key = get_table_keys(adata)
    out = np.full((adata.n_obs, 2), np.nan)
    regions = adata.obs[region_key].astype(str).to_numpy()
    for region in np.unique(regions):
        systems = list(get_transformation(sdata[region], get_all=True))
        system = "global" if "global" in systems else systems[0]
        centroids = get_centroids(sdata[region], coordinate_system=system).compute()[["x", "y"]]
        rows = np.flatnonzero(regions == region)
        out[rows] = centroids.reindex(adata.obs[instance_key].to_numpy()[rows]).to_numpy()
    return out
