"""Hold-outs: hide raw counts before anything else sees them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import (
    get_coordinates,
    get_counts,
    get_genes,
    get_obs,
    get_samples,
    get_var,
    in_memory,
)
from lgdist_scvi._checks import check_choice, check_positive_int, check_unique_names, require_key
from lgdist_scvi._slides import choose_sample_key
from lgdist_scvi._units import library_size
from lgdist_scvi.pp._neighbors import build_distances

Scheme = Literal["entry", "spot", "block", "sample", "thinning"]


def hold_out(
    adata: AnnData,
    fraction: float = 0.3,
    scheme: Scheme = "entry",
    genes: str | Sequence[str] | None = None,
    layer: str | None = None,
    sample_key: str | None = None,
    seed: int = 0,
    *,
    spatial_key: str = "spatial",
    n_blocks: int = 4,
    library_keys: Sequence[str] = ("total_counts",),
) -> AnnData:
    """Hide a part of the raw counts, to be predicted and scored later.

    Counts are hidden first, before size factors, normalisation or training can see them. Nothing in the matrices of the
    copy reveals them but ``layers["truth"]``. `obs`, `var`, `obsm`, `obsp` and `uns` are kept: remove what was computed
    from the full counts there (embeddings, clusters) if a later step reads it.

    Parameters
    ----------
    adata
        Annotated data with raw counts, (n_obs, n_vars). Not modified.
    fraction
        Part to hide, between 0 and 1, of what `scheme` says; rounded to a whole number of at least 1.
    scheme
        - ``"entry"``: this fraction of the non-zero entries of `genes`, drawn uniformly. The question of the LGDiST paper;
          a score on these entries is conditional on having been captured.
        - ``"spot"``: whole spots, drawn uniformly.
        - ``"block"``: this fraction of the spots of every slide, in `n_blocks` connected regions.
        - ``"sample"``: whole slides, drawn uniformly; at least one stays.
        - ``"thinning"``: every count is split, each molecule being hidden with probability `fraction`. Given the rates,
          the two parts are independent (up to overdispersion); the hidden one is ``layers["truth"] - X``.
    genes
        Genes to hide: their names, or a bool column of `var` (such as ``"target_gene"``); ``None`` for all.
    layer
        Layer that holds raw counts; ``None`` reads `adata.X`.
    sample_key
        Column of `adata.obs` with the slide, for ``"sample"`` and ``"block"`` (there ``None`` as in
        :func:`~lgdist_scvi.pp.spatial_neighbors`).
    seed
        Seed. The result does not depend on the storage format of the counts or on the order of `genes`.
    spatial_key
        Key of `adata.obsm` with the coordinates, for ``"block"``.
    n_blocks
        Number of regions on each slide, for ``"block"``.
    library_keys
        Columns of `adata.obs` with library sizes, from which the hidden counts of a spot are subtracted; with ``"thinning"`` of
        all genes, the molecules that they count of genes not in `adata` are thinned as well. ``"total_counts"``
        (:func:`~lgdist_scvi.pp.select_genes`) may be absent.

    Returns
    -------
    A copy in memory, with

    - `X`, and `layers[layer]` if `layer` is given: the counts that stay visible; hidden entries are 0;
    - ``layers["truth"]``: all counts, in the format they had;
    - ``layers["held_out"]``: bool, dense, True where an entry was hidden or (``"thinning"``) thinned;
    - no other layer and no `raw`, which would reveal what is hidden;
    - `uns["hold_out"]`: scheme, fraction, seed and what was hidden.

    Raises
    ------
    KeyError
        If a gene, `layer`, `sample_key`, `spatial_key` or a library size is absent.
    ValueError
        If an argument is out of range, values are not counts, names are duplicated, there is nothing to hide, or a library
        size is smaller than the counts hidden.
    """
    if not isinstance(fraction, int | float | np.number) or not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1 (both excluded), got {fraction!r}")
    check_choice("scheme", scheme, get_args(Scheme))
    check_unique_names(adata)
    chosen = get_genes(adata, genes)
    counts = get_counts(adata, layer)
    csr = counts if sparse.issparse(counts) else sparse.csr_matrix(counts)
    # row-major positions of the counts that may be hidden: the same for every storage format
    rows = np.repeat(np.arange(adata.n_obs), np.diff(csr.indptr))
    eligible = np.flatnonzero(chosen[csr.indices])
    if not len(eligible):
        raise ValueError(f"all counts of the {int(chosen.sum()):,} genes to hide are 0; there is nothing to hide")
    rng = np.random.default_rng(seed)

    visible = csr.data.copy()
    held_out = np.zeros(adata.shape, dtype=bool)
    if scheme == "entry":
        hidden = rng.choice(eligible, size=_part(fraction, len(eligible)), replace=False)
        visible[hidden] = 0
        held_out[rows[hidden], csr.indices[hidden]] = True
    elif scheme == "thinning":
        visible[eligible] = rng.binomial(visible[eligible].astype(np.int64), 1 - fraction)
        held_out[:, chosen] = True
    else:
        spots = _spots(adata, scheme, fraction, sample_key, spatial_key, n_blocks, rng)
        visible[eligible[spots[rows[eligible]]]] = 0
        held_out[np.ix_(spots, chosen)] = True

    n_hidden = library_size(csr) - np.bincount(rows, weights=visible, minlength=adata.n_obs)
    kept = sparse.csr_matrix((visible, csr.indices.copy(), csr.indptr.copy()), shape=csr.shape)
    kept.eliminate_zeros()
    source = in_memory(adata.X if layer is None else adata.layers[layer])
    result = _skeleton(adata)
    result.X = _in_format_of(source, kept)
    if layer is not None:
        result.layers[layer] = _in_format_of(source, kept)
    result.layers["truth"] = _in_format_of(source, csr)
    result.layers["held_out"] = held_out
    for key in library_keys:
        if key == "total_counts" and key not in result.obs:
            continue
        require_key(result.obs, key, "adata.obs", "library_keys are the columns with library sizes")
        result.obs[key] = _reduced(result.obs[key], n_hidden, key)
        if scheme == "thinning" and chosen.all():
            # molecules of genes that are not in adata are of the spot as well
            others = np.maximum(np.rint(result.obs[key] - library_size(kept)), 0).astype(np.int64)
            result.obs[key] -= rng.binomial(others, fraction)
    result.uns["hold_out"] = {
        "scheme": scheme,
        "fraction": float(fraction),
        "seed": seed,
        "n_genes": int(chosen.sum()),
        "n_entries": int(held_out.sum()),
        "n_counts": int(n_hidden.sum()),
    }
    return result


def _part(fraction: float, n: int) -> int:
    """Round a fraction of `n` to a whole number of at least 1."""
    return max(1, int(np.floor(fraction * n + 0.5)))


def _spots(
    adata: AnnData,
    scheme: str,
    fraction: float,
    sample_key: str | None,
    spatial_key: str,
    n_blocks: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the spots to hide, bool (n_obs,)."""
    chosen = np.zeros(adata.n_obs, dtype=bool)
    if scheme == "spot":
        chosen[rng.choice(adata.n_obs, size=_part(fraction, adata.n_obs), replace=False)] = True
        return chosen
    if scheme == "block":
        sample_key = choose_sample_key(adata, sample_key, spatial_key)
    samples = get_samples(adata, sample_key)
    n_samples = int(samples.max()) + 1
    if scheme == "sample":
        if sample_key is None:
            raise ValueError('scheme="sample" hides whole slides; pass sample_key, the column of obs that names them')
        if n_samples < 2:
            raise ValueError(f'scheme="sample" needs two slides or more; adata.obs[{sample_key!r}] names only one')
        slides = rng.choice(n_samples, size=min(_part(fraction, n_samples), n_samples - 1), replace=False)
        return np.isin(samples, slides)
    check_positive_int(n_blocks, "n_blocks")
    distances, _ = build_distances(get_coordinates(adata, spatial_key, sample_key), samples, 6)
    graph = distances.maximum(distances.T).tocsr()
    for sample in range(n_samples):
        spots = np.flatnonzero(samples == sample)
        n_hidden = int(np.floor(fraction * len(spots) + 0.5))
        if n_hidden:
            chosen[spots[_regions(graph[spots][:, spots], n_hidden, n_blocks, rng)]] = True
    if not chosen.any():
        raise ValueError(f"fraction={fraction} of the spots of each slide rounds to no spot; raise it")
    return chosen


def _regions(graph: sparse.csr_matrix, n_spots: int, n_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Grow connected regions ring by ring around random spots until `n_spots` are taken; a region stops at others."""
    free = np.arange(graph.shape[0])
    taken = []
    size = int(np.ceil(n_spots / n_blocks))
    while n_spots > 0:
        centre = rng.integers(len(free))
        order = sparse.csgraph.breadth_first_order(graph, centre, directed=False, return_predecessors=False)
        block = order[: min(size, n_spots)]
        taken.append(free[block])
        n_spots -= len(block)
        left = np.setdiff1d(np.arange(len(free)), block)
        free, graph = free[left], graph[left][:, left]
    return np.concatenate(taken)


def _reduced(library: pd.Series, n_hidden: np.ndarray, key: str) -> np.ndarray:
    """Subtract the hidden counts from a library size."""
    reduced = library.to_numpy(dtype=np.float64) - n_hidden
    # a column stored as float32 may have lost single counts
    too_small = reduced < -1e-6 * np.maximum(1, n_hidden)
    if too_small.any():
        raise ValueError(
            f"adata.obs[{key!r}] is smaller than the counts hidden in {int(too_small.sum()):,} of {len(library):,} spots; "
            "it must count the same molecules: recompute it from the raw counts (pp.select_genes) or drop the column"
        )
    return np.maximum(reduced, 0)


def _skeleton(adata: AnnData) -> AnnData:
    """Copy all annotations and no expression."""
    uns = copy.deepcopy(dict(adata.uns))
    for key in ("_scvi_uuid", "_scvi_manager_uuid"):  # the copy is other data: scvi-tools must register it anew
        uns.pop(key, None)
    parts = {axis: dict(getattr(adata, axis).items()) for axis in ("obsm", "varm", "obsp", "varp")}
    return AnnData(
        obs=get_obs(adata).copy(),
        var=get_var(adata).copy(),
        uns=uns,
        **{axis: {key: _loaded(value) for key, value in part.items()} for axis, part in parts.items()},
    )


def _loaded(value: Any) -> Any:
    """A copy in memory, of the same kind."""
    return in_memory(value) if hasattr(value, "compute") or hasattr(value, "to_memory") else value.copy()


def _in_format_of(source: np.ndarray | sparse.spmatrix | sparse.sparray, csr: sparse.csr_matrix):
    """Store counts as `source` stores them: format and dtype."""
    csr = csr.astype(source.dtype, copy=True)
    if not sparse.issparse(source):
        return csr.toarray()
    if isinstance(source, sparse.sparray):
        csr = sparse.csr_array(csr)
    return csr.asformat(source.format)
