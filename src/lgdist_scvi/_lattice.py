"""What coordinates are: a regular lattice, rows and columns of an array, numbers of sections."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

_SHELL_TOLERANCE = 0.12  # relative; printed arrays (100 um Spatial Transcriptomics) scatter by about 5 %
_SHELL_TOLERANCE_SMALL = 0.03  # few distances fall near a shell by chance
_SMALL = 50  # spots
_MIN_DISTANCES = 10


def lattice(coordinates: np.ndarray) -> tuple[str, float]:
    """Recognise a regular lattice by the distances between neighbours on one slide.

    On a lattice they fall into shells: 1 and sqrt(3) times the pitch on a hexagonal one, 1 and sqrt(2) on a square one,
    and next to nothing in between. Spots lie in rows: pairs of spots, as two shifted lattices form them, are no lattice.

    Returns
    -------
    ``"hexagonal"``, ``"square"`` or ``"irregular"``, and the pitch in the units of the coordinates (NaN if irregular).
    """
    n_spots = len(coordinates)
    if n_spots < 3 or (np.ptp(coordinates, axis=0) > 0).sum() > 2:
        return "irregular", np.nan
    lengths = cKDTree(coordinates).query(coordinates, np.arange(2, min(8, n_spots - 1) + 2))[0]
    nearest = lengths[:, 0]
    pitch = np.median(nearest)
    if pitch == 0:
        return "irregular", np.nan
    pitch = np.median(lengths[lengths < 1.2 * pitch])
    in_rows = np.mean((lengths < 1.2 * pitch).sum(axis=1) > 1) >= 0.05
    if not in_rows or np.mean(np.abs(nearest / pitch - 1) < 0.2) < 0.5:
        return "irregular", np.nan
    tolerance = _SHELL_TOLERANCE if n_spots >= _SMALL else _SHELL_TOLERANCE_SMALL
    # a square lattice fails as a hexagonal one by its diagonals; a hexagonal one has nothing at sqrt(2) to fail with
    for kind, second in (("hexagonal", np.sqrt(3)), ("square", np.sqrt(2))):
        ratios = lengths[lengths < 1.15 * second * pitch] / pitch
        off = np.minimum(np.abs(ratios - 1), np.abs(ratios / second - 1))
        if len(ratios) >= _MIN_DISTANCES and np.mean(off < tolerance) >= 0.85:
            return kind, float(pitch)
    return "irregular", np.nan


def array_rows(coordinates: np.ndarray, obs: pd.DataFrame) -> int | None:
    """Which of two columns holds the rows of a Visium array, where the next spot of a row is two columns away.

    ``None`` if they are no array positions. `obs` may hold ``"array_row"`` or ``"array_col"``, which tell.
    """
    if coordinates.shape[1] != 2 or len(coordinates) < 10:
        return None
    # in steps from the first row and column, whatever they are counted from and in
    gaps = [np.diff(np.unique(column)) for column in coordinates.T]
    step = min((gap.min() for gap in gaps if len(gap)), default=0.0)
    places = (coordinates - coordinates.min(axis=0)) / (step or 1.0)
    if (np.abs(places - np.rint(places)) > 1e-6 * (1 + places)).any():
        return None
    places = np.rint(places)
    if len(np.unique(places.sum(axis=1) % 2)) > 1 or len(np.unique(places[:, 0] % 2)) < 2:
        return None
    for column, name in enumerate(("array_row", "array_col")):
        if name in obs:
            known = pd.to_numeric(obs[name], errors="coerce").to_numpy(float)
            same = [np.array_equal(places[:, place], known - known.min()) for place in (0, 1)]
            if any(same):
                return same.index(True) if column == 0 else 1 - same.index(True)
    # the array is a square of 78 rows and 128 columns
    return int(np.ptp(coordinates[:, 0]) > np.ptp(coordinates[:, 1]))


def in_plane(coordinates: np.ndarray) -> np.ndarray:
    """Leave out a column that is the same everywhere, of three: (n_obs, 2), or (n_obs, 3) in space."""
    same = np.flatnonzero(np.ptp(coordinates, axis=0) == 0) if len(coordinates) else []
    return np.delete(coordinates, same[-1], axis=1) if coordinates.shape[1] == 3 and len(same) else coordinates


def section_column(coordinates: np.ndarray) -> int | None:
    """The column of three with few whole numbers, all of them within the distance between spots of a section, if there is one."""
    for column in (2, 0, 1) if coordinates.shape[1] == 3 else ():
        numbers, section = np.unique(coordinates[:, column], return_inverse=True)
        if not 2 <= len(numbers) <= len(coordinates) / 2 or (numbers % 1 != 0).any():
            continue
        places = np.delete(coordinates, column, axis=1)
        sections = [places[section == i] for i in range(len(numbers))]
        nearest = [cKDTree(spots).query(spots, [2])[0].ravel() for spots in sections if len(spots) > 1]
        if nearest and np.median(np.concatenate(nearest)) > np.ptp(numbers):
            return column
    return None
