"""Bins of Visium HD: their sizes, and which of them hold nothing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection

import numpy as np
from anndata import AnnData

from lgdist_scvi.datasets._stores import blocks

_NAME = re.compile(r"square_0*(\d+)um")
_USUAL = 8  # micrometres


def bin_width(name: str) -> int | None:
    """Width in micrometres of the bins in a folder or table of this name; ``None`` if it is none of bins."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def choose_width(widths: Collection[int], bin_size: int | None, where: str) -> int:
    """Which of the widths to take: the one asked for, else 8 micrometres, else the only one.

    Raises KeyError if it is not there, or there are several and neither is named nor 8; `where` names the place.
    """
    there = ", ".join(map(str, sorted(widths))) or "none"
    if bin_size is not None:
        if bin_size not in widths:
            raise KeyError(f"there are no bins of {bin_size} micrometres in {where!r}; available: {there}")
        return int(bin_size)
    if _USUAL in widths:
        return _USUAL
    if len(widths) > 1:
        raise KeyError(f"{where!r} is of Visium HD, with bins of {there} micrometres; pass bin_size=...")
    return next(iter(widths))


def only_tissue(adata: AnnData, is_hd: bool) -> AnnData:
    """Leave out what holds no tissue, and bins without counts, and say so; as it is if there is nothing to leave out."""
    on_tissue = np.ones(adata.n_obs, dtype=bool)
    if "in_tissue" in adata.obs:
        on_tissue = adata.obs["in_tissue"].to_numpy() == 1
    parts = [(~on_tissue, "spots outside the tissue (in_tissue is 0)")]
    if is_hd:
        empty = np.concatenate([np.asarray(block.sum(axis=1)).ravel() == 0 for block in blocks(adata.X)])
        parts.append((on_tissue & empty, "bins without counts"))
    for leave, what in parts:
        if leave.any():
            warnings.warn(f"{int(leave.sum()):,} of {adata.n_obs:,} {what} are left out", stacklevel=5)
    leave = np.logical_or.reduce([part for part, _ in parts])
    return adata[~leave].copy() if leave.any() else adata
