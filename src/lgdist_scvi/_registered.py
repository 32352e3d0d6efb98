"""What a model was given of an AnnData, as the record of a completed layer tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from lgdist_scvi._anndata import get_counts, get_library, get_mask
from lgdist_scvi._checks import require_key
from lgdist_scvi._units import known_counts, library_size

if TYPE_CHECKING:
    from anndata import AnnData

_DEFAULTS = {"graph_key": "spatial_connectivities", "spatial_key": "spatial"}


class Registered(NamedTuple):
    """What a model was given.

    Attributes
    ----------
    counts
        Known counts, 0 where a mask hides them, (n_obs, n_vars).
    library
        Library size in counts, (n_obs,).
    genes
        Positions of the completed genes, (n_genes,).
    sample_key, graph_key, spatial_key
        As in :meth:`lgdist_scvi.LGDiST.setup_anndata`.
    """

    counts: np.ndarray | sparse.csr_matrix
    library: np.ndarray
    genes: np.ndarray
    sample_key: str | None
    graph_key: str
    spatial_key: str


def registered(adata: AnnData, completed: str, /, **chosen: str | None) -> Registered:
    """Read what the model behind a completed layer was given.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars), with the layer.
    completed
        A layer of completed values. Without a record in ``uns[completed]`` the defaults of `setup_anndata` hold, and every gene
        counts as completed.
    **chosen
        Arguments of `setup_anndata` that the caller names, which go before the record; ``None`` is none.

    Raises
    ------
    KeyError
        If the layer, or what was registered, is absent.
    ValueError
        If values are not counts, or library sizes not what they should be.
    """
    require_key(adata.layers, completed, "adata.layers", "complete the slide first: model.complete(adata)")
    record = adata.uns.get(completed)
    record = record if isinstance(record, Mapping) else {}
    named = {key: value for key, value in chosen.items() if value is not None}
    setup: dict[str, Any] = {**_DEFAULTS, **record.get("setup", {}), **named}
    mask_layer = setup.get("mask_layer")
    counts = known_counts(
        get_counts(adata, setup.get("layer")), None if mask_layer is None else get_mask(adata, mask_layer)
    )
    summed = np.ones(adata.n_vars, dtype=bool)
    if "registered_genes" in record:
        summed = adata.var_names.isin(record["registered_genes"])
        n_gone = len(record["registered_genes"]) - int(summed.sum())
        if n_gone and setup.get("size_factor_key") is None:
            raise ValueError(
                f"{n_gone:,} of the {len(record['registered_genes']):,} genes whose counts were the library behind "
                f"layers[{completed!r}] are not in adata any more; ask before genes are left out, or name a column with the "
                "library sizes (size_factor_key)"
            )
    genes = adata.var_names.isin(record["genes"]) if len(record.get("genes", ())) else np.ones(adata.n_vars, dtype=bool)
    return Registered(
        counts,
        library_of(adata, counts[:, summed], setup.get("size_factor_key")),
        np.flatnonzero(genes),
        setup.get("sample_key"),
        setup["graph_key"],
        setup["spatial_key"],
    )


def library_of(adata: AnnData, counts: np.ndarray | sparse.csr_matrix, size_factor_key: str | None) -> np.ndarray:
    """Library size of each spot: a column of `obs`, or the sum of known counts, (n_obs,).

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If it cannot be a library size, or is 0 beside counts.
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
