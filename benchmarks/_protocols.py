"""Honest protocols: what is hidden, what a method is given, and how its answer is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
from scipy import sparse

from lgdist_scvi import metrics, pp
from lgdist_scvi._units import from_cp10k, log1p_cp10k  # noqa: PLC2701  the one scale

PROTOCOLS = ("entry", "spot", "block", "thinning", "shallow")
GIVEN = {"thinning": 0.5, "shallow": 0.1}  # share of the molecules that a method sees
MIN_COUNTS = 200  # of a spot, all genes
MIN_SPOTS = 500
MIN_TARGETS = 64
MIN_GIVEN = 50  # median molecules per spot that a thinned slide must keep


@dataclass
class Task:
    """What a method is given, and how its answer is scored.

    Attributes
    ----------
    adata
        Hidden counts are gone; (n_obs, n_genes), with graph.
    mask_layer
        Layer that is True where an entry is observed; ``None``: zeros are data.
    size_factor_key
        Library sizes; ``None``: the sum over the genes.
    estimand
        ``"captured"`` or ``"rate"``.
    score
        Function of a prediction, log1p(CP10K), (n_obs, n_genes).
    sample_key
        Column of `obs` with the slide, if there are several.
    library
        Library size with which values are normalised, in counts, (n_obs,).
    measured
        Values that samples and intervals are scored on, log1p(CP10K), float32, (n_obs, n_genes): the hidden values, or a
        second measurement as deep as the given one.
    scored
        Which of them, bool, (n_obs, n_genes).
    rest
        All molecules taken away from a thinned slide, counts, (n_obs, n_genes).
    """

    adata: ad.AnnData
    mask_layer: str | None
    size_factor_key: str | None
    estimand: str
    score: Callable[[np.ndarray], dict[str, float]]
    sample_key: str | None
    library: np.ndarray
    measured: np.ndarray
    scored: np.ndarray
    rest: sparse.csr_matrix | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of what a method is given: equal for all methods that saw the same data."""
        counts = sparse.csr_matrix(self.adata.X)
        digest = hashlib.sha256(np.ascontiguousarray(counts.indices, np.int64))
        digest.update(np.ascontiguousarray(counts.data, np.float64))
        return digest.hexdigest()[:12]


def read(path: Path) -> tuple[ad.AnnData, str | None]:
    """Read a slide with its genes chosen and its graph built, and the name of its slide column."""
    adata = ad.read_h5ad(path)
    sample_key = "sample" if "sample" in adata.obs and adata.obs["sample"].nunique() > 1 else None
    sc.pp.filter_cells(adata, min_counts=MIN_COUNTS)
    pp.select_genes(adata, sample_key=sample_key)
    adata = adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()
    pp.spatial_neighbors(adata, sample_key=sample_key)
    return adata, sample_key


def too_small(adata: ad.AnnData, protocol: str) -> str | None:
    """Why a slide, as :func:`read` gives it, is left out of a protocol; ``None``: it is not.

    The rule knows only the size of the slide, and no score: at least 500 spots with 200 counts or more; for hold-outs of
    values at least 64 target genes (detected in 40 % of the spots); for thinned slides at least 50 molecules left per spot.
    """
    if adata.n_obs < MIN_SPOTS:
        return f"{adata.n_obs} spots with {MIN_COUNTS} counts or more, fewer than {MIN_SPOTS}"
    if protocol in GIVEN:
        given = GIVEN[protocol] * float(np.median(np.asarray(adata.X.sum(axis=1))))
        if given < MIN_GIVEN:
            return f"a median of {given:.0f} molecules per spot would be given, fewer than {MIN_GIVEN}"
        return None
    n_targets = int(adata.var["target_gene"].sum())
    if n_targets < MIN_TARGETS:
        return f"{n_targets} target genes, fewer than {MIN_TARGETS}"
    return None


def task(adata: ad.AnnData, sample_key: str | None, protocol: str, seed: int) -> Task:
    """Hide a part of the counts as a protocol says.

    - ``"entry"``: 30 % of the non-zero entries of the target genes. Library sizes are those without the hidden counts.
    - ``"spot"``, ``"block"``: all genes of 30 % of the spots, drawn uniformly or as connected regions. The depth of a hidden
      spot (its library size) is given, its composition is not.
    - ``"thinning"``, ``"shallow"``: a half or nine tenths of the molecules.
    """
    if protocol in GIVEN:
        return _thinning(adata, sample_key, GIVEN[protocol], seed)
    genes, library_keys = ("target_gene", ("total_counts",)) if protocol == "entry" else (None, ())
    hidden = pp.hold_out(adata, 0.3, protocol, genes=genes, sample_key=sample_key, seed=seed, library_keys=library_keys)
    pp.observed_mask(hidden)
    counts, library = sparse.csr_matrix(hidden.layers["truth"]), hidden.obs["total_counts"].to_numpy(dtype=np.float64)
    # captured values of well-detected genes only: what the protocol asks for
    scored = np.asarray(hidden.layers["held_out"]) & (counts.toarray() > 0) & hidden.var["target_gene"].to_numpy()
    truth = log1p_cp10k(counts, library)
    floor = metrics.poisson_floor(counts, library, scored)

    def score(prediction: np.ndarray) -> dict[str, float]:
        scores = metrics.completion_scores(truth, prediction, scored)
        return {**scores, "floor": floor, "excess": scores["mse"] - floor}

    # what is scored stays here: a method gets the slide without it
    del hidden.layers["truth"], hidden.layers["held_out"]
    return Task(hidden, "observed", "total_counts", "captured", score, sample_key, library, truth, scored)


def _thinning(adata: ad.AnnData, sample_key: str | None, share: float, seed: int) -> Task:
    given = pp.hold_out(adata, 1 - share, "thinning", seed=seed)
    rest = sparse.csr_matrix(given.layers["truth"] - given.X)
    rest.eliminate_zeros()
    mean = np.asarray(given.X.sum(axis=0), dtype=np.float64).ravel()
    mean = (mean + 0.1) / (mean + 0.1).sum()

    def score(prediction: np.ndarray) -> dict[str, float]:
        rate = np.maximum(from_cp10k(np.expm1(prediction.astype(np.float64))), 1e-9)
        return {
            "d2": metrics.poisson_deviance_explained(rest, rate, gene_mean=mean),
            "variance_explained": metrics.poisson_variance_explained(rest, rate, gene_mean=mean),
            "log_likelihood": metrics.poisson_log_likelihood(rest, rate),
        }

    again = rest.toarray().astype(np.int64)
    if share < 0.5:
        again = np.random.default_rng(seed).binomial(again, share / (1 - share))
    library = np.asarray(given.X.sum(axis=1), dtype=np.float64).ravel()
    measured = log1p_cp10k(again, library)
    scored = np.broadcast_to((library > 0)[:, None], measured.shape)
    del given.layers["truth"], given.layers["held_out"]
    return Task(given, None, None, "rate", score, sample_key, library, measured, scored, rest)
