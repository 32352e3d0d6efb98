"""What a model was given of an AnnData, as the record of a completed layer tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_counts, get_library, get_mask
from lgdist_scvi._checks import mapping, require_key
from lgdist_scvi._units import known_counts, library_size

_DEFAULTS = {"graph_key": "spatial_connectivities", "spatial_key": "spatial"}
_RENAMED = 'genes were renamed after completion: give the old names back ({}["registered_genes"] lists them)'


class Registered(NamedTuple):
    """What a model was given.

    Observed counts, 0 where a mask hides them, (n_obs, n_vars), library sizes in counts, (n_obs,), and arguments of
    :meth:`lgdist_scvi.LGDiST.setup_anndata`.
    """

    counts: np.ndarray | sparse.csr_matrix
    library: np.ndarray
    sample_key: str | None
    graph_key: str
    spatial_key: str


def registered(adata: AnnData, completed: str, /, counts_layer: str | None = None, **chosen: str | None) -> Registered:
    """Read what the model behind a layer of completed values was given.

    Without a record in ``uns[completed]`` the defaults of `setup_anndata` hold. `counts_layer`, the layer with raw
    counts, and `chosen`, arguments of `setup_anndata`, go before the record; ``None`` leaves them to it.

    Raises KeyError if the layer, or what was registered, is absent; ValueError if values are not counts, or library
    sizes not what they should be.
    """
    record = _record(adata, completed)
    setup = registered_setup(adata, completed, layer=counts_layer, **chosen)
    mask_layer, size_factor_key = setup.get("mask_layer"), setup.get("size_factor_key")
    try:
        counts = get_counts(adata, setup.get("layer"))
    except ValueError as error:  # where a layer of completed values is named too, that of the counts has another name
        raise ValueError(re.sub(r"\blayer=", "counts_layer=", str(error))) from None
    counts = known_counts(counts, None if mask_layer is None else get_mask(adata, mask_layer))
    summed = counts
    if size_factor_key is None and "registered_genes" in record:
        found = adata.var_names.isin(record["registered_genes"])
        if n_gone := len(record["registered_genes"]) - int(found.sum()):
            remedy = "ask before genes are left out, or name a column with the library sizes (size_factor_key)"
            if not found.any():
                remedy = _RENAMED.format(f"uns[{completed!r}]")
            raise ValueError(
                f"{n_gone:,} of the {len(record['registered_genes']):,} genes whose counts were the library behind "
                f"layers[{completed!r}] are not in adata.var_names any more; {remedy}"
            )
        summed = counts[:, found]
    library = library_of(adata, summed, size_factor_key)
    return Registered(counts, library, setup.get("sample_key"), setup["graph_key"], setup["spatial_key"])


def registered_setup(adata: AnnData, completed: str, /, **chosen: str | None) -> dict[str, Any]:
    """Arguments of `setup_anndata` of the model behind a layer; those named go before the record, ``None`` leaves it to that.

    Raises
    ------
    KeyError
        If the layer is absent.
    """
    named = {key: value for key, value in chosen.items() if value is not None}
    return {**_DEFAULTS, **_record(adata, completed).get("setup", {}), **named}


def completed_genes(adata: AnnData, completed: str) -> np.ndarray:
    """Positions of the genes that a layer completes, (n_genes,): those its record names, else all.

    Raises KeyError if the layer is absent; ValueError if all of them were renamed or removed.
    """
    names = _record(adata, completed).get("genes", ())
    found = adata.var_names.isin(names) if len(names) else np.ones(adata.n_vars, dtype=bool)
    if not found.any():
        raise ValueError(
            f"none of the {len(names):,} genes that layers[{completed!r}] completes is in adata.var_names any more; "
            + _RENAMED.format(f"uns[{completed!r}]")
        )
    return np.flatnonzero(found)


def _record(adata: AnnData, completed: str) -> Mapping[str, Any]:
    require_key(
        adata.layers,
        completed,
        "adata.layers",
        "complete the slide first, model.complete(adata), or predict it, stem.predict(adata)",
    )
    return mapping(adata.uns.get(completed))


def library_of(adata: AnnData, counts: np.ndarray | sparse.csr_matrix, size_factor_key: str | None) -> np.ndarray:
    """Library size of each spot, (n_obs,): a column of `obs`, or the sum of observed counts.

    Raises KeyError if the column is absent; ValueError if it cannot be a library size, or is 0 beside counts.
    """
    if size_factor_key is None:
        return library_size(counts)
    library = get_library(adata, size_factor_key)
    if n_bad := int(((library == 0) & (library_size(counts) > 0)).sum()):
        raise ValueError(
            f"{n_bad:,} of {len(library):,} library sizes in adata.obs[{size_factor_key!r}] are 0 beside observed counts; "
            "recompute them from the raw counts (pp.select_genes)"
        )
    return library
