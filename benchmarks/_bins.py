"""A simulated Visium HD slide, drawn and written to disk a block of bins at a time."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

PITCH = 8 / 0.2738  # pixels; bins of 8 micrometres, at the resolution of a microscope
_N_DOMAINS, _N_PROGRAMMES = 6, 4
_LENGTH = 40  # bins; how far programmes reach
_EMPTY = 0.03  # share of bins that are left out, as without counts
_MOLECULES = 1 << 18  # drawn in one go: temporaries stay below 50 MB


def write_slide(path: Path, n_spots: int, n_genes: int, molecules: float, seed: int = 0) -> None:
    """Write a round tissue of `n_spots` bins on a square lattice, with domains and programmes, as an AnnData zarr store.

    `X` holds counts, CSR float32: of each bin about `molecules`, gamma-Poisson, spread over the genes by a mixture of the
    expression of its domain, of programmes that change smoothly, and of what is everywhere.
    """
    import anndata as ad
    import dask.array as da

    rng = np.random.default_rng(seed)
    row, column = _places(n_spots, rng)
    place = np.column_stack([row, column])
    fields = _smooth_fields(place, _N_DOMAINS + _N_PROGRAMMES, rng)
    domain = fields[:, :_N_DOMAINS].argmax(axis=1)
    step = max(1, int(_MOLECULES / molecules))
    counts = da.map_blocks(
        partial(_counts, domain, fields[:, _N_DOMAINS:], _profiles(n_genes, rng), molecules, seed),
        chunks=(tuple(min(step, n_spots - start) for start in range(0, n_spots, step)), (n_genes,)),
        dtype=np.float32,
        meta=sparse.csr_matrix((0, 0), dtype=np.float32),
        name=f"bins-{path.name}",  # else made of a digest of all fields
    )
    obs = pd.DataFrame(
        {"domain": pd.Categorical.from_codes(domain, [f"domain_{i}" for i in range(_N_DOMAINS)])},
        index=[f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)],
    )
    obs = obs.assign(in_tissue=1, array_row=row, array_col=column)
    var = pd.DataFrame(index=[f"gene_{i:05d}" for i in range(n_genes)])
    unfinished = path.with_name(f"{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    adata = ad.AnnData(counts, obs=obs, var=var, obsm={"spatial": place[:, ::-1] * PITCH})
    adata.write_zarr(unfinished)
    unfinished.replace(path)


def _places(n_spots: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the bins, in the order of rows: those nearest to the middle, but for empty ones."""
    half = int(np.sqrt(n_spots / (1 - 2 * _EMPTY) / np.pi)) + 6
    row, column = (part.ravel() for part in np.mgrid[: 2 * half + 1, : 2 * half + 1])
    distance = np.where(rng.random(len(row)) < _EMPTY, np.inf, np.hypot(row - half, column - half))
    inside = np.sort(np.argpartition(distance, n_spots)[:n_spots])
    return row[inside], column[inside]


def _smooth_fields(place: np.ndarray, n_fields: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random fields of unit variance by random Fourier features (Rahimi and Recht 2007), (n_spots, n_fields)."""
    fields = np.zeros((len(place), n_fields), dtype=np.float32)
    for field in fields.T:
        for wave, phase in zip(rng.normal(0, 1 / _LENGTH, (50, 2)), rng.uniform(0, 2 * np.pi, 50), strict=True):
            field += np.cos(place @ wave + phase, dtype=np.float32) * np.float32(np.sqrt(2 / 50))
    return fields


def _profiles(n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Cumulative expression of domains, programmes and what is everywhere, rows that end in 1."""
    base = rng.normal(0, 1.3, n_genes)
    n_profiles = _N_DOMAINS + _N_PROGRAMMES
    own = rng.normal(0, 1.5, (n_profiles, n_genes)) * (rng.random((n_profiles, n_genes)) < 0.2)
    rates = np.exp(np.vstack([base + own, base])).cumsum(axis=1)
    return rates / rates[:, -1:]


def _counts(
    domain: np.ndarray,
    programmes: np.ndarray,
    profiles: np.ndarray,
    molecules: float,
    seed: int,
    block_info: dict[None, dict[str, Any]],
) -> sparse.csr_matrix:
    """Draw the molecules of a block of bins one by one: whose expression each follows, and of which gene it is."""
    start, stop = block_info[None]["array-location"][0]
    rng = np.random.default_rng([seed, start])
    weights = np.zeros((stop - start, len(profiles)))
    weights[np.arange(stop - start), domain[start:stop]] = 0.4
    smooth = np.exp(1.5 * programmes[start:stop])
    weights[:, _N_DOMAINS:-1] = 0.3 * smooth / smooth.sum(axis=1, keepdims=True)
    weights[:, -1] = 0.3
    depth = rng.poisson(molecules * rng.gamma(4, 1 / 4, stop - start))
    spot = np.repeat(np.arange(stop - start), depth)
    profile = (rng.random(len(spot), dtype=np.float32)[:, None] > weights.cumsum(axis=1)[spot, :-1]).sum(axis=1)
    gene = np.empty(len(spot), dtype=np.int32)
    for number, cumulative in enumerate(profiles):
        its = np.flatnonzero(profile == number)
        gene[its] = np.searchsorted(cumulative, rng.random(len(its)))
    ones = np.ones(len(spot), dtype=np.float32)
    return sparse.csr_matrix((ones, (spot, gene)), shape=(stop - start, profiles.shape[1]))
