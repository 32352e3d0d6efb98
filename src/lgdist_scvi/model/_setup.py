"""Reading from an AnnData what its user left open: slides, graph, likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from anndata import AnnData
from scvi import settings

from lgdist_scvi import pp
from lgdist_scvi._checks import require_key
from lgdist_scvi._units import library_size
from lgdist_scvi.data import NeighborhoodDataset, find_sample_key

DEFAULT_GRAPH = "spatial_connectivities"


def choose_sample_key(adata: AnnData, sample_key: str | None) -> str | None:
    """Use the customary slide column of several slides if none was named: spots of other slides are no neighbours."""
    if sample_key is not None:
        require_key(adata.obs, sample_key, "adata.obs", "sample_key names the slide of each spot")
        return sample_key
    column = find_sample_key(adata, None)
    if column is not None:
        warnings.warn(
            f"adata.obs[{column!r}] names {adata.obs[column].nunique()} slides and is used to keep them apart; pass "
            f"sample_key={column!r} to say so, or another sample_key",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return column


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
        built = adata.uns.get("spatial_neighbors")
        params = built.get("params", {}) if isinstance(built, Mapping) else {}
        built_from = params.get("spatial_key", spatial_key)
        if built_from != spatial_key:
            warnings.warn(
                f"adata.obsp[{graph_key!r}] was built from adata.obsm[{built_from!r}] and is used as it is; for one from "
                f"adata.obsm[{spatial_key!r}] call pp.spatial_neighbors(adata, spatial_key={spatial_key!r})",
                UserWarning,
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


def warn_of_masked_library(dataset: NeighborhoodDataset, size_factor_key: str | None) -> None:
    """Warn of library sizes that seem to hold counts which a mask hides: expected rates would come out too high."""
    if size_factor_key is None or dataset.mask is None or dataset.hides_every_zero():
        return
    observed, total = library_size(dataset.counts, dataset.mask), library_size(dataset.counts)
    hidden, usable = total - observed, dataset.mask.any(axis=1) & (total > 0)
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
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
