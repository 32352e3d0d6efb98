"""Reading an AnnData: every check whose failure a user should understand from one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 1 << 22  # entries looked at in one go: temporaries stay below 40 MB


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse an argument that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def list_names(names: Iterable[Any], limit: int = 5) -> str:
    """Quote the first `limit` names, and say how many were left out."""
    names = list(names)
    listed = ", ".join(repr(str(name)) for name in names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit:,} more"


def require_key(container: Any, key: str | None, where: str, remedy: str = "") -> None:
    """Refuse a key that is not there, and list those that are.

    Parameters
    ----------
    container
        Mapping or data frame that should hold `key` (`adata.obs`, `adata.layers`, ...).
    key
        The key asked for.
    where
        Name of the container for the message, for example ``"adata.obsm"``.
    remedy
        What to call or pass, as a clause.

    Raises
    ------
    KeyError
        If `key` is absent.
    """
    # anndata 0.13 lists X as layer None
    available = [name for name in container if name is not None]
    if key is not None and key in available:
        return
    message = f"{key!r} not found in {where}; available: {list_names(available, 20) or 'none'}"
    raise KeyError(f"{message}; {remedy}" if remedy else message)


def check_positive_int(value: Any, name: str) -> None:
    """Refuse anything but a whole number of at least 1.

    Raises
    ------
    ValueError
        If `value` is something else; says what it is.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _blocks(values: np.ndarray) -> Iterable[np.ndarray]:
    if values.ndim == 1:
        step = _BLOCK
    else:
        step = max(1, _BLOCK // max(1, values.shape[1]))
    for start in range(0, values.shape[0], step):
        yield values[start : start + step]


def check_counts(x: np.ndarray | sparse.spmatrix | sparse.sparray, where: str) -> None:
    """Refuse what cannot be raw counts.

    Parameters
    ----------
    x
        Dense or sparse matrix in memory. Floats are fine if their values are whole numbers.
    where
        Name of the matrix for the message, for example ``"adata.X"``.

    Raises
    ------
    ValueError
        If entries are not numbers, NaN, infinite, negative or not whole; says how many.
    """
    values = x.data if sparse.issparse(x) else np.asarray(x)
    if values.dtype.kind not in "buif":
        raise ValueError(f"{where} has dtype {values.dtype}; raw counts must be integers or floats")
    if values.dtype.kind in "bu":
        return
    n_bad = dict.fromkeys(("NaN", "infinite", "negative", "not whole numbers"), 0)
    for block in _blocks(values):
        if block.dtype.kind == "f":
            finite = np.isfinite(block)
            if not finite.all():
                n_nan = int(np.isnan(block).sum())
                n_bad["NaN"] += n_nan
                n_bad["infinite"] += int(finite.size - finite.sum()) - n_nan
                block = block[finite]
            n_bad["not whole numbers"] += int(np.count_nonzero(block != np.rint(block)))
        n_bad["negative"] += int(np.count_nonzero(block < 0))
    remedies = {
        "NaN": "replace them by 0 and name missing entries in a mask layer instead (pp.observed_mask)",
        "infinite": "pass the layer that holds raw counts (layer=...)",
        "negative": "scaled or corrected values are not counts: pass the layer that holds raw counts (layer=...)",
        "not whole numbers": "the values look normalised: pass the layer that holds raw counts (layer=...)",
    }
    for kind, n in n_bad.items():
        if n:
            total = int(np.prod(x.shape))
            raise ValueError(f"{n:,} of {total:,} entries of {where} are {kind}; {remedies[kind]}")


def in_memory(x: Any) -> Any:
    """Bring a backed or lazy matrix into memory; leave others as they are."""
    if hasattr(x, "to_memory"):  # anndata's backed sparse matrices
        return x.to_memory()
    if hasattr(x, "compute"):  # dask
        return x.compute()
    if sparse.issparse(x):
        return x
    return np.asarray(x)


def as_csr(x: sparse.spmatrix | sparse.sparray) -> sparse.csr_matrix:
    """Give any scipy sparse matrix or array as `csr_matrix`: sorted, without duplicates or stored zeros.

    Shares memory with `x` where nothing had to change, and never modifies `x`.
    """
    # built from the buffers, so that views and subclasses come out as plain csr_matrix
    same = isinstance(x, sparse.csr_matrix | sparse.csr_array)
    csr = x if same else x.tocsr()
    csr = sparse.csr_matrix((np.asarray(csr.data), csr.indices, csr.indptr), shape=csr.shape)
    if not csr.has_canonical_format or np.count_nonzero(csr.data) < csr.nnz:
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def get_counts(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix | np.ndarray:
    """Read raw counts from `X` or a layer, in memory and checked.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars).
    layer
        Layer that holds raw counts; ``None`` reads `adata.X`.

    Returns
    -------
    Counts, (n_obs, n_vars): `csr_matrix` (sorted, no stored zeros) for any sparse format, else a dense array. May share
    memory with `adata`: do not write into it.

    Raises
    ------
    KeyError
        If the layer is absent.
    ValueError
        If there are no values, or they are not counts.
    """
    if layer is None:
        x, where = adata.X, "adata.X"
        if x is None:
            layers = list_names((key for key in adata.layers if key is not None), 20) or "none"
            raise ValueError(f"adata.X is empty; pass the layer that holds raw counts (layer=...; available: {layers})")
    else:
        require_key(adata.layers, layer, "adata.layers", "pass the layer that holds raw counts, or None for adata.X")
        x, where = adata.layers[layer], f"adata.layers[{layer!r}]"
    x = in_memory(x)
    check_counts(x, where)
    return as_csr(x) if sparse.issparse(x) else x


def check_unique_names(adata: AnnData) -> None:
    """Refuse duplicated spot or gene names.

    Raises
    ------
    ValueError
        If `adata.obs_names` or `adata.var_names` hold duplicates; says how many and which call repairs them.
    """
    for axis, what, names in (("obs", "spot", adata.obs_names), ("var", "gene", adata.var_names)):
        if not names.is_unique:
            duplicated = names[names.duplicated()].unique()
            raise ValueError(
                f"{len(duplicated):,} {what} name{'s' if len(duplicated) > 1 else ''} in adata.{axis}_names occur more "
                f"than once ({list_names(duplicated)}); call adata.{axis}_names_make_unique()"
            )


def get_samples(adata: AnnData, sample_key: str | None) -> np.ndarray:
    """Read which slide each spot belongs to.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars).
    sample_key
        Column of `adata.obs` with the slide; ``None`` means one slide.

    Returns
    -------
    Slide codes 0, 1, ... in order of first appearance, int64, (n_obs,).

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If spots have no slide.
    """
    if sample_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    require_key(adata.obs, sample_key, "adata.obs", "sample_key is the column that names the slide of each spot")
    codes = pd.factorize(adata.obs[sample_key])[0].astype(np.int64)
    if n_missing := int((codes < 0).sum()):
        raise ValueError(
            f"{n_missing:,} of {adata.n_obs:,} spots have no value in adata.obs[{sample_key!r}]; "
            "give every spot a slide or drop those spots"
        )
    return codes


def get_coordinates(adata: AnnData, spatial_key: str = "spatial", sample_key: str | None = None) -> np.ndarray:
    """Read spot coordinates.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars).
    spatial_key
        Key of `adata.obsm` with the coordinates.
    sample_key
        Column of `adata.obs` with the slide; two spots of one slide may not share a place, spots of different slides may.

    Returns
    -------
    Coordinates, float64, (n_obs, 2) or more columns.

    Raises
    ------
    KeyError
        If the key is absent.
    ValueError
        If the coordinates are not numbers in two columns or more, NaN, infinite, or duplicated within a slide.
    """
    require_key(adata.obsm, spatial_key, "adata.obsm", "store the x and y of every spot there or pass spatial_key=...")
    where = f"adata.obsm[{spatial_key!r}]"
    try:
        coordinates = np.asarray(adata.obsm[spatial_key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not numeric; store the x and y of every spot as numbers") from error
    if coordinates.ndim != 2 or coordinates.shape[1] < 2:
        raise ValueError(
            f"{where} has shape {coordinates.shape}; expected ({adata.n_obs}, 2) with the x and y of spots"
        )
    if n_bad := int((~np.isfinite(coordinates)).any(axis=1).sum()):
        raise ValueError(
            f"{n_bad:,} of {adata.n_obs:,} spots have NaN or infinite coordinates in {where}; drop those spots first"
        )
    samples = get_samples(adata, sample_key)
    places = pd.DataFrame(coordinates).assign(sample=samples)
    if n_shared := int(places.duplicated(keep=False).sum()):
        hint = "" if sample_key is not None else "pass sample_key=... if adata holds several slides, else "
        raise ValueError(
            f"{n_shared:,} of {adata.n_obs:,} spots share their coordinates in {where} with another spot of the same "
            f"slide; {hint}keep one spot per place"
        )
    return coordinates


def get_mask(adata: AnnData, mask_layer: str) -> np.ndarray:
    """Read a mask layer.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars).
    mask_layer
        Layer with True (or 1) where an entry is observed.

    Returns
    -------
    Dense bool mask, (n_obs, n_vars). May share memory with `adata`: do not write into it.

    Raises
    ------
    KeyError
        If the layer is absent.
    ValueError
        If the layer holds anything but True/False or 1/0, or has another shape than `adata`.
    """
    remedy = "write a mask with pp.observed_mask(adata) or hide entries with pp.hold_out(adata)"
    require_key(adata.layers, mask_layer, "adata.layers", remedy)
    where = f"adata.layers[{mask_layer!r}]"
    mask = in_memory(adata.layers[mask_layer])
    if sparse.issparse(mask):
        mask = mask.toarray()
    if mask.shape != adata.shape:
        raise ValueError(f"{where} has shape {mask.shape}; a mask has the shape of adata, {adata.shape}")
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind not in "uif":
        raise ValueError(f"{where} has dtype {mask.dtype}; a mask is bool, True where an entry is observed")
    if n_bad := sum(int(np.count_nonzero((block != 0) & (block != 1))) for block in _blocks(mask)):
        raise ValueError(
            f"{n_bad:,} of {mask.size:,} entries of {where} are neither 0 nor 1; "
            "a mask is bool, True where an entry is observed (see pp.observed_mask)"
        )
    return mask.astype(bool)


def get_library(adata: AnnData, size_factor_key: str) -> np.ndarray:
    """Read library sizes.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars).
    size_factor_key
        Column of `adata.obs` with library sizes in counts.

    Returns
    -------
    Library size in counts, float64, (n_obs,).

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If values are not numbers, NaN, infinite or negative.
    """
    remedy = "pp.select_genes writes 'total_counts'; None sums the counts of the genes"
    require_key(adata.obs, size_factor_key, "adata.obs", remedy)
    where = f"adata.obs[{size_factor_key!r}]"
    try:
        library = np.asarray(adata.obs[size_factor_key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not numeric; give library sizes in counts") from error
    if n_bad := int((~np.isfinite(library) | (library < 0)).sum()):
        raise ValueError(
            f"{n_bad:,} of {adata.n_obs:,} library sizes in {where} are NaN, infinite or negative; "
            "give total counts per spot, for example from pp.select_genes"
        )
    return library


def get_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray:
    """Read a choice of genes.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars).
    genes
        Names, or a bool column of `adata.var`; ``None`` for all.

    Returns
    -------
    True for the chosen genes, (n_vars,).

    Raises
    ------
    KeyError
        If the column or a gene is absent.
    ValueError
        If the column is not bool, or no gene is chosen.
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
            "pass names from adata.var_names"
        )
    return adata.var_names.isin(names)
