"""Slides told apart by evidence: what the data say of themselves, and where spots lie."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from lgdist_scvi._anndata import get_coordinates, get_obs, get_samples
from lgdist_scvi._checks import list_names, mapping, require_key
from lgdist_scvi._lattice import lattice

_SAMPLE_COLUMNS = ("sample", "library_id")
_LIKE_SLIDES = re.compile(
    r"sample|slide|slice|section|batch|library|fov|region|roi|puck|chip|capture|donor|patient|replicate|dataset", re.I
)
_FEWEST_SPOTS = 20  # per slide; fewer show no geometry
_MOST_SPOTS = 3000  # looked at of one slide, drawn at random
_TOO_CLOSE = 0.7  # pitches; spots of one array are never closer
_REACH = {"hexagonal": 1.36, "square": 1.7}  # pitches; among 6 neighbours at most
_RARE = 0.01  # share of spots


class Evidence(NamedTuple):
    """What speaks for several slides in what is taken for one.

    `column` of `obs` names them clearly, `candidates` may; `reason` is what is wrong with the coordinates, as a clause.
    """

    column: str | None = None
    candidates: list[str] = []
    reason: str = ""


def find_sample_key(adata: AnnData, sample_key: str | None, spatial_key: str = "spatial") -> str | None:
    """Column of `adata.obs` that names the slides: `sample_key`, else what :func:`slide_evidence` is sure of."""
    return sample_key if sample_key is not None else slide_evidence(adata, spatial_key).column


def choose_sample_key(
    adata: AnnData, sample_key: str | None, spatial_key: str = "spatial", stacklevel: int = 3
) -> str | None:
    """Find the slide column as :func:`find_sample_key` does, and say what was found.

    Warns
    -----
    UserWarning
        If a column was chosen, or if coordinates suggest slides that no column, or not the one named, keeps apart.

    Raises
    ------
    KeyError
        If `sample_key` is not in `adata.obs`.
    ValueError
        If spots have no slide.
    """
    column, found = sample_key, Evidence()
    if sample_key is None:
        found = slide_evidence(adata, spatial_key)
        column = found.column
        if column is not None:
            warnings.warn(
                f"adata.obs[{column!r}] names {get_obs(adata)[column].nunique()} slides and is used to keep them apart; pass "
                f"sample_key={column!r} to say so, or another sample_key",
                stacklevel=stacklevel,
            )
    if column is not None:
        require_key(adata.obs, column, "adata.obs", "sample_key is the column that names the slide of each spot")
        found = _within(adata, spatial_key, column)
    if found.reason:
        told = f"adata.obs[{column!r}] does not keep all slides apart: " if column is not None else ""
        fitting = f" (candidates: {list_names(found.candidates)})" if found.candidates else ""
        warnings.warn(
            f"{told}{found.reason}, so that spots of different slides would be neighbours; pass sample_key=..., the column of "
            f"adata.obs that names the slide of each spot{fitting}",
            stacklevel=stacklevel,
        )
    return column


def slide_evidence(adata: AnnData, spatial_key: str = "spatial") -> Evidence:
    """Look for several slides: customary columns, regions of a SpatialData, names of images, then coordinates.

    Spots of one array are never closer than its pitch. Groups of which each is a lattice, and whose spots lie closer
    than that, or beside the places of each other's lattice, are therefore slides; groups that share one lattice are
    not, whatever their name. On irregular tissue nothing is certain, and columns are only named. A customary column
    that leaves spots without a slide is refused (ValueError).
    """
    for column in _SAMPLE_COLUMNS:
        if column not in adata.obs:
            continue
        try:
            n_slides = get_samples(adata, column).max(initial=-1) + 1
        except ValueError as error:
            raise ValueError(
                f"{error} (it is taken for the slides because of its name; rename it if it is not)"
            ) from error
        if 1 < n_slides < adata.n_obs:  # where every spot has its own, these are names of spots
            return Evidence(column)
    obs = get_obs(adata)
    groups = dict(_groups(obs))
    if (region_key := mapping(adata.uns.get("spatialdata_attrs")).get("region_key")) in groups:
        return Evidence(region_key)
    images = [key for key, value in mapping(adata.uns.get("spatial")).items() if isinstance(value, Mapping)]
    if len(images) > 1:
        named = [column for column in groups if obs[column].astype(str).isin(images).all()]
        if named:
            return Evidence(named[0])
    coordinates = _coordinates(adata, spatial_key)
    if coordinates is None:
        return Evidence()
    found = _of_one_slide(coordinates, groups)
    return found if not found.reason or found.candidates else _with_gaps(found, coordinates, obs)


def _with_gaps(found: Evidence, coordinates: np.ndarray, obs: pd.DataFrame) -> Evidence:
    """The same evidence with a column that would name the slides, but for spots without a value."""
    for column, values in obs.items():
        known = values.notna().to_numpy()
        if not known.all() and _of_one_slide(coordinates[known], dict(_groups(obs.loc[known, [column]]))).column:
            reason = f"{found.reason} (adata.obs[{column!r}] has no value for {int((~known).sum()):,} of them)"
            return Evidence(None, [column], reason)
    return found


def _within(adata: AnnData, spatial_key: str, column: str) -> Evidence:
    """The first slide of a column that seems to be several."""
    coordinates, samples = _coordinates(adata, spatial_key), get_samples(adata, column)
    if coordinates is None:
        return Evidence()
    for sample in range(samples.max(initial=-1) + 1):
        spots = np.flatnonzero(samples == sample)
        found = _of_one_slide(coordinates[spots], dict(_groups(get_obs(adata).iloc[spots])))
        if found.column is not None:
            return Evidence(None, [found.column], "spots of one slide lie between those of another")
        if found.reason:
            return found
    return Evidence()


def _coordinates(adata: AnnData, spatial_key: str) -> np.ndarray | None:
    """Places in the plane; ``None`` in space, and where coordinates are not what they should be, which is refused elsewhere."""
    try:
        coordinates = get_coordinates(adata, spatial_key, check_places=False)
    except (KeyError, ValueError):
        return None
    flat = coordinates[:, np.ptp(coordinates, axis=0) > 0]
    return flat if flat.shape[1] == 2 else None


def _groups(obs: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Columns of names or small whole numbers that group all spots, with the group of each spot as code."""
    for column, values in obs.items():
        if not isinstance(column, str) or values.isna().any():
            continue
        if pd.api.types.is_float_dtype(values) and (values % 1 != 0).any():
            continue
        try:
            codes, names = pd.factorize(values)
        except TypeError:  # a column of lists, say
            continue
        if 1 < len(names) <= len(obs) / 5:
            yield column, codes


def _of_one_slide(coordinates: np.ndarray, groups: Mapping[str, np.ndarray]) -> Evidence:
    """Evidence that spots, with all columns that group them, are of several slides."""
    n_spots = len(coordinates)
    if n_spots < _FEWEST_SPOTS:
        return Evidence()
    kind, pitch = lattice(coordinates)
    tree = cKDTree(coordinates)
    spots = np.arange(n_spots)
    if n_spots > _MOST_SPOTS:
        spots = np.random.default_rng(0).choice(n_spots, _MOST_SPOTS, replace=False)
    length, other = tree.query(coordinates[spots], min(9, n_spots))
    length[other == spots[:, None]] = np.inf
    nearest = length.min(axis=1)
    row, place = np.nonzero(np.isfinite(length))
    one, two, length = spots[row], other[row, place], length[row, place]
    repeated = _repeated((coordinates[two] - coordinates[one]) / max(np.median(length), 1e-300))
    if kind != "irregular":
        near, crowded = length < _REACH[kind] * pitch, length < _TOO_CLOSE * pitch
        ring = length < 1.2 * pitch
        n_ring = np.bincount(row[ring], minlength=len(spots))
        # where shifted lattices make up another one, it has gaps everywhere, or is not quite even
        gaps = np.percentile(n_ring, 95) <= (3 if kind == "hexagonal" else 2)
        odd = near & (crowded | (repeated < 0.03) | gaps | (np.std(length[ring]) > 0.03 * pitch))
        if odd.sum() <= _RARE / 2 * near.sum():
            return Evidence()
        n_crowded, usual = len(np.unique(row[crowded])), np.bincount(n_ring).argmax()
        mixed = n_crowded > _RARE * len(spots)
        closest = crowded if mixed else odd & ring if (odd & ring).any() else odd
        reason = (
            f"{n_crowded / len(spots):.0%} of the spots lie closer to another one than the lattice of the slide allows"
        )
        if not mixed and gaps and np.mean(n_ring == usual) > 0.6:
            mixed, reason = True, f"most spots have only {usual} others at the distance of the lattice"
    else:
        mixed = np.mean(repeated > 0.005) > 0.3
        closest = length <= np.quantile(nearest, 0.1)
        reason = "spots form several lattices that are shifted against each other"
    candidates, clear = [], []
    for column, codes in groups.items():
        apart = codes[one] != codes[two]
        shares = np.bincount(codes[one[closest]]) / max(1, closest.sum())
        by_chance = np.sum(shares**2)
        together = np.mean(~apart[closest])
        if together <= 0.1 * by_chance:
            n_left = _n_left_mixed(coordinates, tree, codes, spots)
            if n_left is not None:
                clear.append((n_left, codes.max(), column))
            if by_chance * closest.sum() > 5:
                candidates.append(column)
        elif (
            kind == "irregular"
            and _LIKE_SLIDES.search(column)
            and apart.mean() > 0.5 * (1 - np.sum((np.bincount(codes) / n_spots) ** 2))
        ):
            candidates.append(column)
    if clear:
        return Evidence(min(clear)[2])
    if kind == "irregular" and candidates and not mixed:
        return Evidence(None, candidates, f"spots of different adata.obs[{candidates[0]!r}] lie between each other")
    return Evidence(None, candidates, reason) if mixed else Evidence()


def _repeated(steps: np.ndarray) -> np.ndarray:
    """Share of all steps between neighbours that each is a repetition of, as on a lattice; in units of a typical step."""
    _, place, number = np.unique(np.rint(steps / 0.1), axis=0, return_inverse=True, return_counts=True)
    return (number[place.ravel()] - 5) / len(steps)  # few steps are alike by chance


def _n_left_mixed(coordinates: np.ndarray, tree: cKDTree, codes: np.ndarray, spots: np.ndarray) -> int | None:
    """Number of spots too close to one of their own group, if groups are slides; ``None`` if they are not for sure."""
    sizes = np.bincount(codes)
    pitch, reach = np.full(len(sizes), np.nan), 0.0
    for group in np.flatnonzero(sizes >= _FEWEST_SPOTS):
        kind, pitch[group] = lattice(coordinates[codes == group])
        reach = max(reach, _REACH.get(kind, 0.0))
    if sizes[np.isfinite(pitch)].sum() < 0.9 * len(codes):
        return None
    found = tree.query_ball_point(coordinates[spots], reach * np.nanmax(pitch))
    one, two = np.repeat(spots, [len(those) for those in found]), np.concatenate(found).astype(int)
    one, two = one[one != two], two[one != two]
    step = coordinates[two] - coordinates[one]
    length, scale = np.linalg.norm(step, axis=1), np.fmin(pitch[codes[one]], pitch[codes[two]])
    same, near, crowded = codes[one] == codes[two], length < reach * scale, length < _TOO_CLOSE * scale
    own = step[same & near & ~crowded]
    if not len(own):
        return None
    # neighbours of one lattice stand where those within a group do
    fits = cKDTree(own[:: max(1, len(own) // 2000)]).query(step)[0] < 0.05 * np.nanmedian(pitch)
    table = pd.DataFrame({"pair": codes[one] * len(sizes) + codes[two], "crowded": crowded, "fits": fits & ~crowded})
    table = table.assign(odd=~fits & ~crowded)[near & ~same].groupby("pair").sum()
    if ((table["crowded"] == 0) & (table["fits"] > table["odd"].clip(lower=2))).any():
        return None  # two groups share a lattice
    n_crowded = len(np.unique(one[crowded & ~same]))
    if n_crowded < max(3, _RARE * len(spots)) and not (table["odd"].sum() > max(2, table["fits"].sum())):
        return None
    return int(len(np.unique(one[crowded & same])))
