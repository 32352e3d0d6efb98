"""One AnnData out of what holds several: MuData and SpatialData."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from lgdist_scvi._checks import list_names, needs
from lgdist_scvi.datasets._bins import bin_width, choose_width, only_tissue
from lgdist_scvi.datasets._stores import open_lazily

if TYPE_CHECKING:
    from mudata import MuData


def from_mudata(mdata: MuData, where: str, spatial_key: str, modality: str | None) -> AnnData:
    """Take a modality, the only one if none is named; coordinates that only the whole holds go with it.

    `mdata`, called `where` in messages, is not modified.

    Raises KeyError if there is no such modality, or several and none is named.
    """
    adata = mdata.mod[_choose("modality", "modalities", list(mdata.mod), modality, where)]
    if spatial_key not in adata.obsm and spatial_key in mdata.obsm:
        adata = adata.copy()
        adata.obsm[spatial_key] = np.asarray(mdata.obsm[spatial_key])[mdata.obs_names.get_indexer(adata.obs_names)]
    return adata


def from_spatialdata(sdata: Any, where: str, spatial_key: str, table: str | None, bin_size: int | None) -> AnnData:
    """Take a table, as :func:`choose_table` does, with the centroids of what it annotates if it has no coordinates.

    `sdata`, called `where` in messages, is not modified.

    Raises KeyError if there is no such table, or one without coordinates annotates nothing that is there.
    """
    name = choose_table(list(sdata.tables), where, table, bin_size)
    adata = _with_coordinates(sdata.tables[name], lambda: sdata, name, where, spatial_key)
    return only_tissue(adata, is_hd=True) if bin_width(name) is not None else adata


def read_spatialdata(
    path: Path, spatial_key: str, table: str | None, bin_size: int | None, lazy: bool, turn: bool
) -> AnnData:
    """Read one table of a store, as :func:`from_spatialdata`; `lazy`: its counts stay there (`turn`: :func:`open_lazily`)."""
    import anndata
    import zarr

    def elements() -> Any:
        with needs(f"{path.name!r} is a SpatialData store, whose shapes spatialdata reads; pip install spatialdata"):
            import spatialdata
        return spatialdata.read_zarr(path, selection=("labels", "points", "shapes"))

    tables = zarr.open_group(str(path), mode="r").get("tables", {})
    name = choose_table(list(tables), path.name, table, bin_size)
    adata = open_lazily(path, f"tables/{name}", turn) if lazy else anndata.read_zarr(path / "tables" / name)
    adata = _with_coordinates(adata, elements, name, path.name, spatial_key)
    return only_tissue(adata, is_hd=True) if bin_width(name) is not None else adata


def choose_table(names: list[str], where: str, table: str | None, bin_size: int | None) -> str:
    """Name of the table that is asked for, or the only one; of several sizes of bins and nothing else 8 micrometres.

    Raises KeyError if it is not there, or several are and none is asked for; ValueError if two are.
    """
    if table is not None and bin_size is not None:
        raise ValueError(
            f"table={table!r} and bin_size={bin_size!r} both choose a table of {where!r}; pass one of them"
        )
    bins = {width: name for name in names if (width := bin_width(name)) is not None}
    if bin_size is not None or (table is None and len(names) == len(bins) > 1):
        return bins[choose_width(bins, bin_size, where)]
    return _choose("table", "tables", names, table, where)


def _with_coordinates(adata: AnnData, elements: Callable[[], Any], name: str, where: str, spatial_key: str) -> AnnData:
    """A table, or a copy of it with the centroids of what it annotates if it has no coordinates."""
    if spatial_key in adata.obsm:
        return adata
    attributes = adata.uns.get("spatialdata_attrs")
    if attributes is None:
        raise KeyError(
            f"table {name!r} of {where!r} has no obsm[{spatial_key!r}] and annotates no shapes to take coordinates from; store "
            "the x and y of every spot there or pass spatial_key=..."
        )
    adata = adata.copy()
    keys = attributes["region_key"], attributes["instance_key"]
    adata.obsm[spatial_key] = _centroids(elements(), adata, *keys, where)
    return adata


def _choose(what: str, several: str, names: list[str], chosen: str | None, where: str) -> str:
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen is None:
        raise KeyError(f"{where!r} has {len(names)} {several} ({list_names(names) or 'none'}); pass {what}=...")
    if chosen not in names:
        raise KeyError(f"{chosen!r} is not a {what} of {where!r}; available: {list_names(names) or 'none'}")
    return chosen


def _centroids(sdata: Any, adata: AnnData, region_key: str, instance_key: str, where: str) -> np.ndarray:
    """Find the centroids (x, y) of the elements that each row of a table annotates, (n_obs, 2)."""
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    out = np.full((adata.n_obs, 2), np.nan)
    regions = adata.obs[region_key].astype(str).to_numpy()
    for region in np.unique(regions):
        if region not in sdata:
            raise KeyError(f"{where!r} has no element {region!r}, of which a table without coordinates annotates spots")
        systems = list(get_transformation(sdata[region], get_all=True))
        system = "global" if "global" in systems else systems[0]
        centroids = get_centroids(sdata[region], coordinate_system=system).compute()[["x", "y"]]
        rows = np.flatnonzero(regions == region)
        out[rows] = centroids.reindex(adata.obs[instance_key].to_numpy()[rows]).to_numpy()
    return out
