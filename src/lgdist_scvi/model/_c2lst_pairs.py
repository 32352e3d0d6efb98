"""Pairs of generated patches and the expression that they were made for, flagged as such."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._version import __version__


def drawn_rows(n: int, n_obs: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n rows at random, (n,): all of them once before any twice."""
    return np.concatenate([rng.permutation(n_obs) for _ in range(-(-n // n_obs))])[:n]


def flagged_pairs(
    source: AnnData,
    rows: np.ndarray,
    genes: np.ndarray,
    counts: np.ndarray,
    values: np.ndarray,
    patches: np.ndarray,
    setup: Mapping[str, Any],
    record: Mapping[str, Any],
) -> AnnData:
    """Put generated patches beside the expression of the spots that they were made for.

    Parameters
    ----------
    source
        Data of these spots.
    rows
        Row of the spot of each patch, (n,).
    genes
        Names of the genes.
    counts, values
        Counts and log1p(CP10K) of expected rates of all spots, (n_obs, n_genes).
    patches
        Generated patches, uint8 (n, size, size, 3).
    setup
        Keys of the registration.
    record
        How they were made.
    """
    layers = {"expression": values[rows]}
    pairs = AnnData(sparse.csr_matrix(counts[rows]), layers=layers, obsm={setup["patch_key"]: patches})
    pairs.var_names = genes
    pairs.obs_names = [f"synthetic_{number}" for number in range(len(rows))]
    pairs.obs["synthetic"] = True
    pairs.obs["source"] = np.asarray(source.obs_names[rows])
    for key in (setup["sample_key"], setup["size_factor_key"]):
        if key is not None:
            pairs.obs[key] = source.obs[key].to_numpy()[rows]
    pairs.uns["synthetic"] = {"model": "C2LST", "version": __version__, **record}
    return pairs
