"""Reading an AnnData: counts, slides, coordinates, masks, library sizes and genes, checked, in memory or where they are stored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._checks import (
    as_floats,
    check_counts,
    check_has_spots,
    check_mask,
    did_you_mean,
    list_names,
    mapping,
    refuse_bad_counts,
    require_key,
)
from lgdist_scvi._lattice import array_rows, in_plane, section_column
from lgdist_scvi._stored import StoredRows, as_csr, in_memory, is_stored, row_blocks

_COORDINATE_COLUMNS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("x_centroid", "y_centroid"),
    ("center_x", "center_y"),
    ("imagecol", "imagerow"),
    ("x", "y"),
    ("array_col", "array_row"),
)


def get_obs(adata: AnnData) -> pd.DataFrame:
    """Annotation of the spots in memory, also where it is read when asked for (:func:`anndata.experimental.read_lazy`)."""
    return adata.obs if isinstance(adata.obs, pd.DataFrame) else adata.obs.to_memory()


def get_var(adata: AnnData) -> pd.DataFrame:
    """Annotation of the genes, likewise."""
    return adata.var if isinstance(adata.var, pd.DataFrame) else adata.var.to_memory()


def get_counts(adata: AnnData, layer: str | None = None, argument: str = "layer") -> sparse.csr_matrix | np.ndarray:
    """Read raw counts, (n_obs, n_vars), from a layer, or from `X` if it is ``None``, in memory and checked.

    `csr_matrix` (sorted, no stored zeros) for any sparse format, else a dense array; it may share memory with `adata`:
    do not write into it. `argument` is what the caller's user calls `layer`, for messages.

    Raises KeyError if the layer is absent; ValueError if there are no spots or values, or they are not counts (it says
    where in `adata` there are counts).
    """
    x = in_memory(_counts_at(adata, layer, argument)[0])
    check_counts(x, counts_at(layer), lambda: _where_counts_are(adata, layer, argument))
    return as_csr(x) if sparse.issparse(x) else x


def open_counts(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix | np.ndarray | StoredRows:
    """Counts as :func:`get_counts` gives them, or :class:`StoredRows` of those that are on disk; what they hold is not checked.

    Raises KeyError if the layer is absent; ValueError if there are no spots or values, or large counts are stored by genes.
    """
    x, where = _counts_at(adata, layer, "layer")
    if is_stored(x):
        return StoredRows(x, where)
    return as_csr(x) if sparse.issparse(x) else np.asarray(x)


def refuse_counts(adata: AnnData, layer: str | None, n_bad: Counter[str]) -> None:
    """Refuse the matrix that `layer` names (ValueError) if any of its entries, told by :func:`bad_counts`, cannot be counts."""
    refuse_bad_counts(n_bad, adata.shape, counts_at(layer), lambda: _where_counts_are(adata, layer, "layer"))


def counts_at(layer: str | None) -> str:
    """The name of `X` or of a layer, for messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _counts_at(adata: AnnData, layer: str | None, argument: str) -> tuple[Any, str]:
    """The matrix that should hold counts, and its name."""
    check_has_spots(adata)
    if layer is not None:
        require_key(adata.layers, layer, "adata.layers", "pass the layer that holds raw counts, or None for adata.X")
        return adata.layers[layer], counts_at(layer)
    if adata.X is None:
        raise ValueError(f"adata.X is empty; {_where_counts_are(adata, layer, argument)}")
    return adata.X, counts_at(layer)


def _where_counts_are(adata: AnnData, layer: str | None, argument: str) -> str:
    """Say where in `adata` raw counts are, as the remedy in a message."""
    # layers of a completion hold no counts, whatever their numbers
    written = {key for key, record in adata.uns.items() if "provenance" in mapping(record)}
    layers = [key for key in adata.layers if key not in (None, layer) and key.rsplit("_", 1)[0] not in written]
    counts = [key for key in layers if _are_counts(adata.layers[key])]
    if layer is not None and adata.X is not None and _are_counts(adata.X):
        return f"adata.X holds counts: pass {argument}=None"
    if counts:
        return f"pass the layer that holds raw counts ({argument}=...; whole numbers are in {list_names(counts)})"
    raw = getattr(adata, "raw", None)
    if raw is not None and _are_counts(raw.X):
        if adata.var_names.isin(raw.var_names).all():
            line = 'adata.layers["counts"] = adata.raw[:, adata.var_names].X'
            return f'adata.raw holds counts: write them into a layer, {line}, and pass {argument}="counts"'
        return "adata.raw holds counts, of other genes: go on with adata.raw.to_adata()"
    return f"pass the layer that holds raw counts ({argument}=...; available: {list_names(layers, 20) or 'none'})"


def _are_counts(x: Any) -> bool:
    if np.dtype(x.dtype).kind == "b":
        return False
    try:
        for block in row_blocks(StoredRows(x, "") if is_stored(x) else x):
            check_counts(block, "")
    except ValueError:
        return False
    return True


def get_graph(adata: AnnData, graph_key: str) -> sparse.csr_matrix:
    """Read a neighbourhood graph from `obsp`, (n_obs, n_obs); row i holds the neighbours of spot i.

    In memory, sorted, without stored zeros; it may share memory with `adata`: do not write into it.

    Raises KeyError if the key is absent; ValueError if the graph is dense or of another size.
    """
    rebuild = "build it with pp.spatial_neighbors(adata, sample_key=...)"
    require_key(adata.obsp, graph_key, "adata.obsp", rebuild)
    graph, where = in_memory(adata.obsp[graph_key]), f"adata.obsp[{graph_key!r}]"
    if not sparse.issparse(graph):
        raise ValueError(f"{where} is a dense array; {rebuild}")
    if graph.shape != (adata.n_obs, adata.n_obs):
        raise ValueError(f"{where} has shape {graph.shape}, adata has {adata.n_obs:,} spots; {rebuild}")
    return as_csr(graph)


def get_samples(adata: AnnData, sample_key: str | None) -> np.ndarray:
    """Read the slide of each spot, int64, (n_obs,): codes 0, 1, ... in order of first appearance.

    Without `sample_key` there is one slide.

    Raises KeyError if the column is absent; ValueError if spots have no slide.
    """
    if sample_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    require_key(adata.obs, sample_key, "adata.obs", "sample_key is the column that names the slide of each spot")
    codes = pd.factorize(get_obs(adata)[sample_key])[0].astype(np.int64)
    if n_missing := int((codes < 0).sum()):
        raise ValueError(
            f"{n_missing:,} of {adata.n_obs:,} spots have no value in adata.obs[{sample_key!r}]; "
            "give every spot a slide or drop those spots"
        )
    return codes


def get_coordinates(
    adata: AnnData, spatial_key: str = "spatial", sample_key: str | None = None, *, check_places: bool = True
) -> np.ndarray:
    """Read spot coordinates from `obsm`, float64, (n_obs, 2), or (n_obs, 3) in space.

    Of three columns one that is the same everywhere is left out. Rows and columns of a Visium array, in either order,
    become places in the plane: rows lie sqrt(3) times as far apart as columns. Two spots of one slide may not share a
    place (unless not `check_places`); spots of different slides may.

    Raises KeyError if the key is absent (it says what may hold coordinates); ValueError if there are no spots, the
    coordinates are not numbers in two or three columns, NaN, infinite, or duplicated within a slide, or one of three
    columns numbers sections.
    """
    check_has_spots(adata)
    if spatial_key not in adata.obsm:
        require_key(adata.obsm, spatial_key, "adata.obsm", _where_coordinates_are(adata))
    where, table = f"adata.obsm[{spatial_key!r}]", in_memory(adata.obsm[spatial_key])
    columns = adata.obsm[spatial_key].columns if hasattr(adata.obsm[spatial_key], "columns") else []
    try:
        coordinates = as_floats(table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not numeric; store the x and y of every spot as numbers") from error
    if coordinates.ndim != 2 or not 2 <= coordinates.shape[1] <= 3:
        named = f" ({list_names(columns)})" if len(columns) else ""
        raise ValueError(
            f"{where} has shape {coordinates.shape}{named}; expected ({adata.n_obs}, 2) with the x and y of spots: keep these two"
        )
    if n_bad := int((~np.isfinite(coordinates)).any(axis=1).sum()):
        raise ValueError(
            f"{n_bad:,} of {adata.n_obs:,} spots have NaN or infinite coordinates in {where}; drop those spots first"
        )
    coordinates = in_plane(coordinates)
    if (column := section_column(coordinates)) is not None:
        raise ValueError(
            f"the {('first', 'second', 'third')[column]} column of {where} numbers sections, but would count as a distance; keep x "
            f'and y, and name the sections: adata.obs["section"] = np.asarray(adata.obsm[{spatial_key!r}])[:, {column}]'
            '.astype(int).astype(str), then sample_key="section"'
        )
    if check_places:
        places = pd.DataFrame(coordinates).assign(sample=get_samples(adata, sample_key))
        if n_shared := int(places.duplicated(keep=False).sum()):
            hint = "" if sample_key is not None else "pass sample_key=... if adata holds several slides, else "
            raise ValueError(
                f"{n_shared:,} of {adata.n_obs:,} spots share their coordinates in {where} with another spot of the same "
                f"slide; {hint}keep one spot per place"
            )
    if (rows := array_rows(coordinates, get_obs(adata))) is not None:
        coordinates = coordinates.copy()
        coordinates[:, rows] *= np.sqrt(3)
    return coordinates


def _where_coordinates_are(adata: AnnData) -> str:
    """Say what may hold the coordinates, as the remedy in a message."""
    for key in adata.obsm:
        if re.search("spatial|coord|centroid|pixel|xy", key, re.IGNORECASE):
            return f"pass spatial_key={key!r}, if that holds the x and y of every spot"
    for x, y in _COORDINATE_COLUMNS:
        if x in adata.obs and y in adata.obs:
            return f"adata.obs has them: adata.obsm['spatial'] = adata.obs[['{x}', '{y}']].to_numpy(), or pass spatial_key=..."
    return "store the x and y of every spot there or pass spatial_key=..."


def get_mask(adata: AnnData, mask_layer: str) -> np.ndarray:
    """Read a mask layer, True (or 1) where an entry is observed: dense bool, (n_obs, n_vars).

    It may share memory with `adata`: do not write into it.

    Raises KeyError if the layer is absent; ValueError if the layer holds anything but True/False or 1/0, or has another
    shape than `adata`.
    """
    mask = in_memory(_mask_at(adata, mask_layer))
    if sparse.issparse(mask):
        mask = mask.toarray()
    check_mask([mask], mask.dtype, mask.shape, adata.shape, f"adata.layers[{mask_layer!r}]")
    return mask.astype(bool, copy=False)


def open_mask(adata: AnnData, mask_layer: str) -> np.ndarray | sparse.csr_matrix | StoredRows:
    """A mask layer as :func:`get_mask` reads it, but sparse or on disk where it is so; that on disk is not checked for its values."""
    mask, where = _mask_at(adata, mask_layer), f"adata.layers[{mask_layer!r}]"
    if is_stored(mask):
        check_mask((), np.dtype(mask.dtype), mask.shape, adata.shape, where)
        return StoredRows(mask, where)
    if sparse.issparse(mask):
        check_mask([mask.data], mask.dtype, mask.shape, adata.shape, where)
        return as_csr(mask)
    return get_mask(adata, mask_layer)


def observed_genes(adata: AnnData, mask_layer: str) -> np.ndarray:
    """Genes of which a mask marks anything as observed, bool, (n_vars,); raises as :func:`get_mask`."""
    mask, seen = open_mask(adata, mask_layer), np.zeros(adata.n_vars, dtype=bool)

    def values() -> Iterator[np.ndarray]:
        for block in row_blocks(mask):
            seen[(np.asarray(block.sum(axis=0)).ravel() if sparse.issparse(block) else block.any(axis=0)) > 0] = True
            yield block.data if sparse.issparse(block) else block

    check_mask(values(), np.dtype(mask.dtype), mask.shape, adata.shape, f"adata.layers[{mask_layer!r}]")
    return seen


def _mask_at(adata: AnnData, mask_layer: str) -> Any:
    remedy = "write a mask with pp.observed_mask(adata)"
    if mask_layer == "held_out":
        remedy = "hide entries with pp.hold_out(adata)"
    elif "held_out" in adata.layers:
        remedy = "pp.hold_out hides entries, pp.observed_mask(adata, method='held_out') writes the mask"
    require_key(adata.layers, mask_layer, "adata.layers", remedy)
    return adata.layers[mask_layer]


def get_library(adata: AnnData, size_factor_key: str) -> np.ndarray:
    """Read library sizes in counts from `obs`, float64, (n_obs,).

    Raises KeyError if the column is absent; ValueError if values are not numbers, NaN, infinite or negative.
    """
    remedy = "pp.select_genes writes 'total_counts'; None sums the counts of the genes"
    require_key(adata.obs, size_factor_key, "adata.obs", remedy)
    where = f"adata.obs[{size_factor_key!r}]"
    try:
        library = as_floats(get_obs(adata)[size_factor_key])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not numeric; give library sizes in counts") from error
    if n_bad := int((~np.isfinite(library) | (library < 0)).sum()):
        raise ValueError(
            f"{n_bad:,} of {adata.n_obs:,} library sizes in {where} are NaN, infinite or negative; "
            "give total counts per spot, for example from pp.select_genes"
        )
    return library


def get_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray:
    """Read a choice of genes: True for the chosen ones, (n_vars,).

    `genes` are names, or a bool column of `adata.var`; ``None`` for all.

    Raises KeyError if the column or a gene is absent; ValueError if the column is not bool, or no gene is chosen.
    """
    if genes is None:
        return np.ones(adata.n_vars, dtype=bool)
    if isinstance(genes, str):
        require_key(adata.var, genes, "adata.var", "genes is a bool column of var (pp.select_genes) or a list of names")
        column = adata.var[genes]
        if not pd.api.types.is_bool_dtype(column) or column.isna().any():
            raise ValueError(
                f"adata.var[{genes!r}] has dtype {column.dtype}; expected bool, True for the genes to choose"
            )
        chosen = column.to_numpy(dtype=bool)
        if not chosen.any():
            raise ValueError(f"adata.var[{genes!r}] is True for no gene")
        return chosen
    names = pd.Index(genes)
    if not len(names):
        raise ValueError("genes is empty; pass names, a bool column of var, or None for all genes")
    unknown = names[~names.isin(adata.var_names)].unique()
    if len(unknown):
        raise KeyError(
            f"{len(unknown):,} of {len(names):,} genes are not in adata.var_names: {list_names(unknown)}; "
            f"{did_you_mean(unknown, adata.var_names)}pass names from adata.var_names"
        )
    return adata.var_names.isin(names)
