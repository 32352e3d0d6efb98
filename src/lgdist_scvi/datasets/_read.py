"""Reading slides of any common format, checked."""

from __future__ import annotations

import warnings
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from lgdist_scvi._anndata import get_coordinates, get_counts
from lgdist_scvi._checks import list_names
from lgdist_scvi.datasets._containers import from_mudata, from_spatialdata, read_spatialdata
from lgdist_scvi.datasets._space_ranger import read_space_ranger
from lgdist_scvi.datasets._stores import check_stored_counts, new_store, open_lazily, write_store

if TYPE_CHECKING:
    from mudata import MuData
    from spatialdata import SpatialData

_SLIDES = ("sample", "library_id")  # customary columns of obs
_OPTIONS = {
    "AnnData": ("lazy", "store"),
    "MuData": ("modality",),
    "SpatialData": ("table", "bin_size", "lazy", "store"),
    "Space Ranger": ("bin_size", "lazy", "store"),
}
_SUFFIXES = {".h5ad": "AnnData", ".h5mu": "MuData", ".h5": "Space Ranger"}
_ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")


def read(
    path: str | PathLike[str] | AnnData | MuData | SpatialData,
    *,
    layer: str | None = None,
    sample_key: str | None = None,
    spatial_key: str = "spatial",
    table: str | None = None,
    modality: str | None = None,
    bin_size: int | None = None,
    lazy: bool = False,
    store: str | PathLike[str] | None = None,
) -> AnnData:
    """Read a slide and check that it holds what this package needs: raw counts and coordinates.

    Parameters
    ----------
    path
        - an ``.h5ad`` file or an AnnData ``.zarr`` store;
        - a Space Ranger output folder (of Visium or Visium HD), the folder above its ``outs``, or an ``.h5`` count matrix in it.
          Spots outside the tissue and Visium HD bins without counts are left out, with a warning;
        - a SpatialData ``.zarr`` store, or the object. Where the table has no coordinates, they are the centroids of the
          elements that it annotates;
        - an ``.h5mu`` file or a MuData ``.zarr`` store, or the object;
        - an AnnData.
    layer
        Layer that holds raw counts; ``None`` means `X`.
    sample_key
        Column of `obs` with the slide; spots of one slide may not share a place. ``None``: ``"sample"`` or ``"library_id"``, if
        one is there.
    spatial_key
        Key of `obsm` with the coordinates.
    table
        Table of SpatialData; needed if there is more than one and `bin_size` does not tell.
    modality
        Modality of MuData; needed if there is more than one.
    bin_size
        Width of the bins of Visium HD in micrometres: of a folder, or of a SpatialData store with a table for each width.
        ``None``: 8, or the only one. Bins keep their ``obs["array_row"]`` and ``obs["array_col"]``, and lie on a square
        lattice (:func:`~lgdist_scvi.pp.spatial_neighbors` with 4 or 8 neighbours).
    lazy
        Leave `X` and layers where they are, as Dask arrays that are read a block of spots at a time. For files and stores
        in which counts lie by spots (csr); `raw` is left out.
    store
        Path of a new zarr store to which the slide is written, a block of spots at a time: counts of any size pass through
        little memory, also where they lie by genes (csc). It is then opened as with `lazy`.

    Returns
    -------
    The annotated data, (n_obs, n_vars), in memory unless `lazy` or `store` is given; a copy if an object was given.
    Duplicated gene names get a suffix, with a warning. Where `X` holds no counts but ``adata.raw`` does, as in files of
    CELLxGENE, `X` becomes the counts and ``layers["X"]`` what it was, with a warning.

    Raises
    ------
    FileExistsError
        If there is something at `store`.
    FileNotFoundError
        If there is nothing at `path`, or a Space Ranger folder is incomplete.
    ImportError
        If a library that reads the format is not installed.
    KeyError
        If the layer, the coordinates, the table or the modality are absent, or one must be named.
    ValueError
        If the format is not known or does not have the option given, the values are not counts, the coordinates are not usable, or
        counts that are to stay on disk lie there by genes (csc).

    Examples
    --------
    >>> adata = datasets.read("slide.h5ad")  # doctest: +SKIP
    >>> adata = datasets.read("visium_hd/outs", bin_size=16)  # doctest: +SKIP
    >>> adata = datasets.read("visium_hd/outs", store="slide.zarr")  # doctest: +SKIP
    >>> adata = datasets.read("slide.zarr", lazy=True)  # the next time  # doctest: +SKIP
    """
    target = None if store is None else new_store(store)
    adata = _read(path, spatial_key, table=table, modality=modality, bin_size=bin_size, lazy=lazy or None, store=target)
    stays = lazy or target is not None
    if layer is None:
        _take_raw_counts(adata)
    if not adata.var_names.is_unique:
        duplicated = adata.var_names[adata.var_names.duplicated()].unique()
        warnings.warn(
            f"{len(duplicated):,} gene names occur more than once ({list_names(duplicated)}); they get a suffix",
            stacklevel=2,
        )
        adata.var_names_make_unique()
    if sample_key is None:
        sample_key = next((key for key in _SLIDES if key in adata.obs and adata.obs[key].notna().all()), None)
    get_coordinates(adata, spatial_key, sample_key)
    (check_stored_counts if stays else get_counts)(adata, layer)
    return adata if target is None else write_store(adata, target)


def _kind(path: Any) -> str:
    """Name what is to be read."""
    if not isinstance(path, str | PathLike):
        kind = next((base.__name__ for base in type(path).__mro__ if base.__name__ in _OPTIONS), None)
        if kind is None:
            raise ValueError(
                f"cannot read a {type(path).__name__}; expected a path, an AnnData, a MuData or a SpatialData"
            )
        return kind
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    if path.is_dir() and any((path / name).exists() for name in _ZARR_FILES):
        import zarr

        encoding = str(zarr.open_group(str(path), mode="r").attrs.get("encoding-type", "")).lower()
        return {"anndata": "AnnData", "mudata": "MuData"}.get(encoding, "SpatialData")
    if path.is_dir() and path.suffix != ".zarr":
        return "Space Ranger"
    raise ValueError(
        f"cannot read {path.name!r}; expected an .h5ad or .h5mu file, a Space Ranger folder or its .h5 file, or a .zarr store"
    )


def _read(path: Any, spatial_key: str, **options: Any) -> AnnData:
    kind, is_object = _kind(path), not isinstance(path, str | PathLike)
    for name, value in options.items():
        if value is not None and name not in _OPTIONS[kind]:
            of = ", ".join(other for other, has in _OPTIONS.items() if name in has)
            raise ValueError(f"{name}={value!r} is for {of}, but this is {kind}; leave {name}=... out")
    lazy = options["lazy"] or options["store"] is not None
    table, bin_size = options["table"], options["bin_size"]
    if is_object:
        if options["lazy"]:
            raise ValueError(f"lazy=True is for paths, but this is an object, {kind}; leave it out, or pass store=...")
        if kind == "AnnData":
            return path.to_memory() if path.isbacked else path.copy()
        if kind == "MuData":
            return from_mudata(path, kind, spatial_key, options["modality"]).copy()
        return from_spatialdata(path, kind, spatial_key, table, bin_size).copy()
    path = Path(path)
    if kind == "Space Ranger":
        folder, counts_file = (path.parent, path.name) if path.is_file() else (path, None)
        return read_space_ranger(folder, counts_file, bin_size, lazy)
    if kind == "SpatialData":
        return read_spatialdata(path, spatial_key, table, bin_size, lazy, turn=options["store"] is not None)
    if kind == "MuData":
        import mudata

        mdata = mudata.read_h5mu(path) if path.is_file() else mudata.read_zarr(path)
        return from_mudata(mdata, path.name, spatial_key, options["modality"])
    if lazy:
        return open_lazily(path, turn=options["store"] is not None)
    import anndata

    return anndata.read_h5ad(path) if path.is_file() else anndata.read_zarr(path)


def _take_raw_counts(adata: AnnData) -> None:
    """Let `X` be the counts of `adata.raw`, if it holds none itself."""
    if adata.raw is None or adata.X is None:
        return
    with suppress(ValueError):
        get_counts(adata)
        return
    raw = adata.raw.to_adata()
    if raw.var_names.equals(adata.var_names):
        counts = raw.X
    elif raw.var_names.is_unique and adata.var_names.isin(raw.var_names).all():
        counts = raw[:, adata.var_names].X.copy()
    else:
        return
    try:
        adata_counts = get_counts(type(adata)(counts))
    except ValueError:  # no counts either: what is wrong with X is said next
        return
    warnings.warn(
        "adata.X holds no counts, adata.raw does: X is now the counts, and layers['X'] what X was",
        stacklevel=3,
    )
    adata.layers["X"], adata.X = adata.X, adata_counts
