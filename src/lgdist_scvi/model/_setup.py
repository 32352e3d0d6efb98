"""Reading from an AnnData what its user left open, slides and graph, and warning of what looks wrong."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi import settings

from lgdist_scvi import pp
from lgdist_scvi._anndata import get_graph, get_obs, open_mask
from lgdist_scvi._checks import check_not_synthetic, either, mapping, require_key
from lgdist_scvi._slides import choose_sample_key
from lgdist_scvi.data import NeighborhoodDataset

__all__ = [
    "DEFAULT_GRAPH",
    "check_anndata",
    "check_keywords",
    "choose_sample_key",
    "modality_of",
    "same_key",
    "warn_of_equal_totals",
    "warn_of_masked_library",
    "warn_of_spots",
    "with_graph",
]

DEFAULT_GRAPH = "spatial_connectivities"
_MANY_NEIGHBORS = 50
_BLOCK = 2048  # spots
_OUTSIDE = ("0", "0.0", "false", "f", "no", "n")  # the tissue, as numbers or as words
_CORRECTION = ("batch_key", "labels_key", "categorical_covariate_keys", "continuous_covariate_keys")


def check_anndata(adata: Any, method: str = "setup_anndata", allow_synthetic: bool = True) -> None:
    """Refuse other containers than AnnData (TypeError), and say which part of them is one; and synthetic spots (ValueError)."""
    if isinstance(adata, AnnData):
        check_not_synthetic(adata, allow_synthetic)
        return
    kind = type(adata).__name__
    part = {
        "MuData": "use setup_mudata(mdata, modality=...), or pass one modality, such as mdata['rna']",
        "SpatialData": "pass one of its tables, as lgdist_scvi.datasets.read(path, table=...) reads it with coordinates in obsm",
    }.get(
        kind,
        "read the file with lgdist_scvi.datasets.read(path)"
        if isinstance(adata, str)
        else "store the counts in its X, coordinates in obsm",
    )
    raise TypeError(f"{method} needs an AnnData, got {kind}; {part}")


def modality_of(mdata: Any, modality: str, method: str = "setup_mudata") -> AnnData:
    """The AnnData of one modality: TypeError if `mdata` is no MuData, KeyError if it has no such modality."""
    if not isinstance(mdata, MuData):
        raise TypeError(f"{method} needs a MuData with the modality {modality!r}, got {type(mdata).__name__}")
    require_key(mdata.mod, modality, "mdata.mod", "name the modality that holds the counts")
    return mdata.mod[modality]


def check_keywords(given: Mapping[str, Any], arguments: list[str]) -> None:
    """Refuse keyword arguments that registration does not know (TypeError), and say what they may have meant.

    Those with which scvi-tools transfers a registry are let through.
    """
    if "source_registry" in given or not given:
        return
    name = next(iter(given))
    if name in _CORRECTION:
        raise TypeError(
            f"setup_anndata knows no {name}: no batch, label or covariate is corrected for; sample_key tells slides apart"
        )
    close = difflib.get_close_matches(name, arguments, n=1, cutoff=0.0)
    raise TypeError(f"setup_anndata knows no {name!r}; did you mean {close[0]!r}? (arguments: {', '.join(arguments)})")


def same_key(sample_key: str | None, library_key: str | None) -> str | None:
    """The slide column, which `library_key` is another word for."""
    return either(sample_key=sample_key, library_key=library_key)


@contextmanager
def with_graph(
    adata: AnnData, graph_key: str, sample_key: str | None, spatial_key: str, n_neighbors: int | None = None
) -> Iterator[None]:
    """Build the customary graph where there is none, with as many neighbours as another one was built with.

    It is taken away again if what follows fails: another attempt may name other slides or coordinates.
    """
    build = graph_key == DEFAULT_GRAPH and graph_key not in adata.obsp
    if build:
        number = {} if n_neighbors is None else {"n_neighbors": n_neighbors}
        pp.spatial_neighbors(adata, sample_key=sample_key, spatial_key=spatial_key, **number)
    elif graph_key == DEFAULT_GRAPH:
        params = mapping(mapping(adata.uns.get("spatial_neighbors")).get("params"))
        built_from = params.get("spatial_key", spatial_key)
        if built_from != spatial_key:
            warnings.warn(
                f"adata.obsp[{graph_key!r}] was built from adata.obsm[{built_from!r}] and is used as it is; for one from "
                f"adata.obsm[{spatial_key!r}] call pp.spatial_neighbors(adata, spatial_key={spatial_key!r})",
                stacklevel=settings.warnings_stacklevel + 1,
            )
    try:
        yield
    except BaseException:
        if build:
            for key in ("spatial_connectivities", "spatial_distances"):
                adata.obsp.pop(key, None)
            adata.uns.pop("spatial_neighbors", None)
        raise


def warn_of_spots(adata: AnnData, graph_key: str, mask_layer: str | None) -> None:
    """Warn of spots outside the tissue, of entries that a hold-out hides and no mask does, and of costly graphs."""
    messages = []
    if "in_tissue" in adata.obs:
        in_tissue = get_obs(adata)["in_tissue"]
        outside = [value for value in in_tissue.unique().tolist() if str(value).strip().lower() in _OUTSIDE]
        if n_off := int(in_tissue.isin(outside).sum()):
            inside = "adata.obs['in_tissue'] == 1"
            if not pd.api.types.is_numeric_dtype(in_tissue):
                inside = f"~adata.obs['in_tissue'].isin({outside})"
            messages.append(
                f"{n_off:,} of {adata.n_obs:,} spots lie outside the tissue (adata.obs['in_tissue'] is {outside[0]!r}) and would be "
                f"filled with expression; leave them out: adata = adata[{inside}].copy()"
            )
    if "held_out" in adata.layers and mapping(adata.uns.get("hold_out")).get("scheme") != "thinning":
        masks = [open_mask(adata, name) for name in ("held_out", mask_layer) if name is not None]
        if n_shown := sum(
            _in_all([mask[start : start + _BLOCK] for mask in masks]) for start in range(0, adata.n_obs, _BLOCK)
        ):
            messages.append(
                f"{n_shown:,} entries that adata.layers['held_out'] hides would be read as measured zeros; call "
                "pp.observed_mask(adata, method='held_out') and pass mask_layer='observed'"
            )
    most = int(np.diff(get_graph(adata, graph_key).indptr).max(initial=0))
    if most > _MANY_NEIGHBORS:
        messages.append(
            f"spots have up to {most:,} neighbours in adata.obsp[{graph_key!r}]: training takes time and memory for as many of "
            "every spot, with 60 about twice and with 240 about six times as long as with 6; pp.spatial_neighbors(adata) takes "
            "the 6 nearest, with max_distance=... none farther away"
        )
    for message in messages:
        warnings.warn(message, stacklevel=settings.warnings_stacklevel + 1)


def _in_all(masks: list[Any]) -> int:
    """Number of entries that are True in all masks, dense or sparse, of the same shape."""
    parts = [np.asarray(mask.todense() if sparse.issparse(mask) else mask, dtype=bool) for mask in masks]
    return int(np.logical_and.reduce(parts).sum())


def warn_of_equal_totals(dataset: NeighborhoodDataset) -> None:
    """Warn of counts that may be rounded after normalisation: all spots have the same total."""
    total = dataset.totals.counted
    total = total[total > 0]
    if len(total) < 10:
        return
    low, middle, high = np.quantile(total, [0.05, 0.5, 0.95])
    if high - low < 0.02 * middle:
        warnings.warn(
            f"all spots have nearly the same total, about {middle:,.0f}, as if values were normalised (to CP10K, say) and rounded; "
            "pass raw counts (layer=...), unless counts were drawn to one depth",
            stacklevel=settings.warnings_stacklevel + 1,
        )


def warn_of_masked_library(dataset: NeighborhoodDataset, size_factor_key: str | None) -> None:
    """Warn of library sizes that seem to hold counts which a mask hides: expected rates would come out too high."""
    if size_factor_key is None or dataset.mask is None or dataset.hides_every_zero():
        return
    total = dataset.totals.counted
    hidden, usable = total - dataset.totals.observed, (dataset.totals.n_observed > 0) & (total > 0)
    affected, others = usable & (hidden > 0), usable & (hidden == 0)
    if not affected.any():
        return
    if others.any():
        # the molecules of other genes, too, are as many beside those of a whole spot as elsewhere
        usual = np.median(dataset.library[others] / total[others])
        as_it_is, with_hidden = (
            abs(np.median((dataset.library + added)[affected] / total[affected]) - usual) for added in (0.0, hidden)
        )
        counted = as_it_is < with_hidden
    else:
        counted = (abs(dataset.library - total)[affected] <= 0.5).all()
    if counted:
        warnings.warn(
            f"adata.obs[{size_factor_key!r}] seems to count molecules that the mask hides, in {int(affected.sum()):,} spots; if so, "
            "expected values come out too high there: take them off, as pp.hold_out does, or register without size_factor_key",
            stacklevel=settings.warnings_stacklevel,
        )
