"""Reading the folders of Space Ranger: Visium and Visium HD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from lgdist_scvi._checks import list_names, needs
from lgdist_scvi.datasets._bins import bin_width, choose_width, only_tissue
from lgdist_scvi.datasets._count_matrix import read_count_matrix

_COUNTS_FILES = ("filtered_feature_bc_matrix.h5", "raw_feature_bc_matrix.h5")
_POSITIONS_FILES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_POSITIONS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_space_ranger(folder: Path, counts_file: str | None, bin_size: int | None, lazy: bool) -> AnnData:
    """Read a slide: counts in `X`, pixels of the full image, (x, y), in ``obsm["spatial"]``, images in `uns`.

    `in_tissue`, `array_row` and `array_col` are in `obs`, what there is of images and scale factors in
    ``uns["spatial"]``.

    Parameters
    ----------
    folder
        Folder with the count matrix, or above it: above `outs`, above or at `binned_outputs`.
    counts_file
        Name of the count matrix; ``None``: the filtered one, or where there is none the raw one.
    bin_size
        Width of Visium HD bins in micrometres; ``None``: 8, or the only ones.
    lazy
        Leave the counts in the file: `X` is a Dask array.

    Raises
    ------
    FileNotFoundError
        If files are missing.
    ImportError
        If positions are in a parquet file and pyarrow is not installed.
    KeyError
        If there are not bins of the size named, or several sizes but 8 micrometres.
    ValueError
        If the counts cannot be read, or the positions are not theirs.
    """
    folder = _with_counts(folder, bin_size)
    counts_file = counts_file or next((name for name in _COUNTS_FILES if (folder / name).exists()), _COUNTS_FILES[0])
    positions_file = next((name for name in _POSITIONS_FILES if (folder / "spatial" / name).exists()), None)
    missing = [counts_file] if not (folder / counts_file).exists() else []
    missing += ["spatial/tissue_positions.csv"] if positions_file is None else []
    if missing:
        raise FileNotFoundError(
            f"{str(folder)!r} is not a complete Space Ranger folder; missing: {list_names(missing)} (counts come from "
            f"{_COUNTS_FILES[0]!r}, coordinates from the folder 'spatial' beside it)"
        )
    adata = read_count_matrix(folder / counts_file, lazy)
    positions = _positions(folder / "spatial" / positions_file)
    if n_unknown := int((~adata.obs_names.isin(positions.index)).sum()):
        raise ValueError(
            f"{n_unknown:,} of {adata.n_obs:,} barcodes of {counts_file!r} are not in {positions_file!r}; the two files are of "
            "different runs"
        )
    positions = positions.loc[adata.obs_names]
    adata.obs[_POSITIONS[1:4]] = positions[_POSITIONS[1:4]].astype(int)
    adata.obsm["spatial"] = positions[_POSITIONS[:3:-1]].to_numpy(dtype=np.float64)
    adata.uns["spatial"] = {_library_id(folder, counts_file): _library(folder / "spatial")}
    return only_tissue(adata, bin_width(folder.resolve().name) is not None)


def _with_counts(folder: Path, bin_size: int | None) -> Path:
    """Find the folder that holds the count matrix."""
    inside = folder / "outs"
    if inside.is_dir() and not (folder / "spatial").is_dir() and not (folder / "binned_outputs").is_dir():
        folder = inside
    binned = folder if folder.name == "binned_outputs" else folder / "binned_outputs"
    parts = list(binned.iterdir()) if binned.is_dir() else [folder.resolve()]
    bins = {width: part for part in parts if (width := bin_width(part.name)) is not None}
    if not bins and bin_size is None:
        return folder
    return bins[choose_width(bins, bin_size, str(folder))]


def _positions(file: Path) -> pd.DataFrame:
    """Read where each barcode lies, in the columns of `_POSITIONS`."""
    if file.suffix == ".parquet":
        with needs(f"{file.name!r}, the positions of Visium HD bins, needs pyarrow; pip install pyarrow"):
            table = pd.read_parquet(file)
    else:
        with file.open() as lines:
            has_header = lines.readline().lower().startswith("barcode")
        table = pd.read_csv(file, header=0 if has_header else None, names=None if has_header else _POSITIONS)
    table = table.reset_index() if "barcode" not in table.columns else table
    return table[_POSITIONS].set_index(table["barcode"].astype(str))


def _library_id(folder: Path, counts_file: str) -> str:
    """Name of the slide: as the counts say, or else of the folder."""
    import h5py

    with h5py.File(folder / counts_file) as file:
        named = file.attrs.get("library_ids", ())
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in named]
    return names[0] if len(names) == 1 else folder.resolve().name


def _library(spatial: Path) -> dict[str, Any]:
    """Images and scale factors that are there, as scanpy and squidpy store them."""
    from PIL import Image

    factors, images = spatial / "scalefactors_json.json", {}
    for resolution in ("hires", "lowres"):
        if (file := spatial / f"tissue_{resolution}_image.png").exists():
            images[resolution] = np.asarray(Image.open(file))
    return {"images": images, "scalefactors": json.loads(factors.read_text()) if factors.exists() else {}}
