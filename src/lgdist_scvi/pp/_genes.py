"""Selection of target and context genes by spatial association."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_coordinates, get_counts, get_samples
from lgdist_scvi._checks import check_positive_int, check_unique_names
from lgdist_scvi._moran import morans_i_per_slide
from lgdist_scvi._slides import choose_sample_key
from lgdist_scvi._units import library_size, to_log1p
from lgdist_scvi.pp._neighbors import build_distances


def select_genes(
    adata: AnnData,
    n_targets: int = 128,
    n_genes: int = 1024,
    layer: str | None = None,
    sample_key: str | None = None,
    *,
    spatial_key: str = "spatial",
    n_neighbors: int = 6,
    min_target_detection: float = 0.4,
    min_context_detection: float = 0.03,
) -> None:
    """Choose target genes and context genes by Moran's I.

    Targets are the most spatially associated of the well-detected genes, those whose missing values can be learnt and
    scored. Context genes are the next by Moran's I; they are input that enriches the latent space. Moran's I is computed
    by :func:`squidpy.gr.spatial_autocorr` on log1p(CP10K), on each slide's own neighbourhood graph, and averaged over
    slides weighted by their numbers of spots (a gene without variation on a slide counts as 0 there).

    Nothing is removed. Poor spots are worth removing before, chosen genes are kept after::

        sc.pp.filter_cells(adata, min_counts=200)
        pp.select_genes(adata)
        adata = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()

    Parameters
    ----------
    adata
        Annotated data with raw counts, (n_obs, n_vars): all genes, not a selection of them.
    n_targets
        Number of target genes.
    n_genes
        Number of target and context genes together.
    layer
        Layer that holds raw counts; ``None`` reads `adata.X`.
    sample_key
        Column of `adata.obs` with the slide; ``None`` as in :func:`~lgdist_scvi.pp.spatial_neighbors`.
    spatial_key
        Key of `adata.obsm` with the coordinates.
    n_neighbors
        Neighbours in the graph of Moran's I, see :func:`~lgdist_scvi.pp.spatial_neighbors`.
    min_target_detection
        Fraction of spots in which a target gene is detected.
    min_context_detection
        Fraction of spots in which a context gene is detected.

    Returns
    -------
    Nothing; writes

    - `var["target_gene"]`, `var["context_gene"]`: bool, no gene is both;
    - `var["moranI"]`: Moran's I, NaN for genes detected in too few spots;
    - `obs["total_counts"]`: counts of each spot over all genes of `adata`, the library size to keep when genes are
      removed (replaces a column of that name).

    Warns
    -----
    UserWarning
        If fewer genes qualify than were asked for; those that do are taken. If slides were found, or may be mixed.

    Raises
    ------
    KeyError
        If `layer`, `sample_key` or `spatial_key` is absent.
    ValueError
        If an argument is out of range, the values are not counts, gene names are duplicated, no gene qualifies, or no
        two spots are neighbours.
    """
    for name, value in (("n_targets", n_targets), ("n_genes", n_genes), ("n_neighbors", n_neighbors)):
        check_positive_int(value, name)
    if n_targets > n_genes:
        raise ValueError(f"expected n_targets <= n_genes, got n_targets={n_targets} and n_genes={n_genes}")
    shares = {"min_target_detection": min_target_detection, "min_context_detection": min_context_detection}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a fraction of spots between 0 and 1, got {value!r}")
    check_unique_names(adata)
    counts = get_counts(adata, layer)
    sample_key = choose_sample_key(adata, sample_key, spatial_key)
    coordinates = get_coordinates(adata, spatial_key, sample_key)
    samples = get_samples(adata, sample_key)
    totals = library_size(counts)

    n_detected = counts.getnnz(axis=0) if sparse.issparse(counts) else np.count_nonzero(counts, axis=0)
    detection = np.asarray(n_detected) / max(1, adata.n_obs)
    candidates = np.flatnonzero((detection >= min_context_detection) & (n_detected > 0))
    if not len(candidates):
        raise ValueError(
            f"none of {adata.n_vars:,} genes is detected in {min_context_detection:.0%} of spots; "
            "lower min_context_detection"
        )
    moran = np.full(adata.n_vars, np.nan)
    distances, _ = build_distances(coordinates, samples, n_neighbors)
    moran[candidates] = _moran(_log1p_cp10k_columns(counts, candidates, totals), distances > 0, samples)

    ranked = candidates[np.argsort(-moran[candidates], kind="stable")]
    well_detected = ranked[detection[ranked] >= min_target_detection]
    targets = well_detected[:n_targets]
    context = ranked[~np.isin(ranked, targets)][: n_genes - len(targets)]
    if len(targets) < n_targets:
        warnings.warn(
            f"only {len(targets):,} of {n_targets:,} target genes: {len(well_detected):,} of {adata.n_vars:,} genes are "
            f"detected in at least {min_target_detection:.0%} of spots; lower min_target_detection for more",
            stacklevel=2,
        )
    if len(targets) + len(context) < n_genes:
        warnings.warn(
            f"only {len(targets) + len(context):,} of {n_genes:,} genes in all: {len(candidates):,} of "
            f"{adata.n_vars:,} genes are detected in at least {min_context_detection:.0%} of spots; "
            "lower min_context_detection for more",
            stacklevel=2,
        )
    adata.var["target_gene"] = np.isin(np.arange(adata.n_vars), targets)
    adata.var["context_gene"] = np.isin(np.arange(adata.n_vars), context)
    adata.var["moranI"] = moran
    adata.obs["total_counts"] = totals


def _log1p_cp10k_columns(
    counts: np.ndarray | sparse.csr_matrix, genes: np.ndarray, totals: np.ndarray
) -> sparse.csc_matrix:
    """Normalise some genes, sparse: a dense matrix of all genes of a large slide would not fit."""
    chosen = sparse.csr_matrix(counts[:, genes], dtype=np.float64)
    rows = np.repeat(np.arange(chosen.shape[0]), np.diff(chosen.indptr))
    chosen.data = to_log1p(chosen.data, totals[rows])
    return chosen.tocsc()


def _moran(expression: sparse.csc_matrix, graph: sparse.csr_matrix, samples: np.ndarray) -> np.ndarray:
    """Average Moran's I of each gene over slides, (n_vars,)."""
    per_slide, n_spots = morans_i_per_slide(expression, graph, samples)
    if not len(n_spots):
        raise ValueError("no two spots are neighbours, Moran's I is undefined; check the coordinates and sample_key")
    # a gene that is constant on a slide has no structure there
    return n_spots @ np.nan_to_num(per_slide) / n_spots.sum()
