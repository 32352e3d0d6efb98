"""Images of simulated tissue, as Space Ranger's readers store them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

PITCH = 100.0  # pixels between neighbouring spots, as 100 um on a real slide
_SPOT = 55.0  # diameter of a spot in pixels
_FLAT = 500  # pixels on the longer side of an image without cells
_PIXELS = 1.9e6  # of an image with cells
_REACH = 0.8  # of the tissue beyond its spots, in pitches
_GLASS = 0.96
# optical density of red, green and blue for one unit of stain (after Ruifrok and Johnston 2001, eosin less magenta)
_HAEMATOXYLIN, _EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.80, 0.30])
_DENSITY = (8.0, 60.0)  # nuclei in the square of a pitch: least and most among domains
_RADIUS = (2.6, 4.4)  # of nuclei, in micrometres
_NUCLEUS, _CYTOPLASM = 0.75, 0.22  # units of stain


def appearance(domains: np.ndarray, programmes: np.ndarray, n_domains: int) -> dict[str, np.ndarray]:
    """Say how the tissue of each spot looks: by its domain, the same in all slides, and by two gene programmes.

    Of `programmes`, scores of unit variance, (n_spots, 2) or more columns, the first makes cells denser, the second
    makes stroma redder.

    Returns
    -------
    `density` (nuclei in the square of a pitch), `radius` of nuclei (micrometres) and `eosin` (units of stain),
    (n_spots,) each.
    """
    rank = np.arange(n_domains) / max(1, n_domains - 1)
    density = _DENSITY[0] * (_DENSITY[1] / _DENSITY[0]) ** rank
    radius = _RADIUS[1] + (_RADIUS[0] - _RADIUS[1]) * (np.arange(n_domains) % 3) / 2
    eosin = _CYTOPLASM * (1 + 0.25 * ((np.arange(n_domains) % 2) * 2 - 1))
    return {
        "density": density[domains] * np.exp(0.25 * programmes[:, 0]),
        "radius": radius[domains],
        "eosin": eosin[domains] * np.exp(0.15 * programmes[:, 1]),
    }


def library(
    xy: np.ndarray, domains: np.ndarray, looks: dict[str, np.ndarray] | None, rng: np.random.Generator
) -> dict[str, Any]:
    """Paint a tissue section the way Space Ranger stores it: images, and scale factors from full-resolution pixels.

    Spots have pixels `xy`, (n_spots, 2), and domains, (n_spots,). `looks`, what :func:`appearance` says, asks for an
    image with nuclei of about two megapixels; ``None`` for a small one, flat in each domain.
    """
    extent = xy.max(axis=0) + 1.5 * PITCH
    scale = _FLAT / extent.max() if looks is None else min(1.0, np.sqrt(_PIXELS / extent.prod()))
    columns, rows = np.ceil(extent * scale).astype(int)
    y, x = np.mgrid[:rows, :columns]
    places = np.column_stack([x.ravel(), y.ravel()]) / scale
    _, spot = cKDTree(xy).query(places, distance_upper_bound=_REACH * PITCH)
    spot = spot.reshape(rows, columns)
    tissue, spot = spot < len(xy), spot.clip(max=len(xy) - 1)
    if looks is None:
        painted = np.array([0.86, 0.62, 0.76]) * (1 - 0.05 * (domains[spot] % 4))[..., None]
        painted += rng.normal(0, 0.02, size=(rows, columns, 1))
        coarse = 2
    else:
        painted = _stained(xy, looks, spot, scale, rng)
        coarse = 4
    image = (np.where(tissue[..., None], painted, _GLASS).clip(0, 1) * 255).astype(np.uint8)
    lowres = image[::2, ::2]
    if looks is not None:
        whole = image[: rows // coarse * coarse, : columns // coarse * coarse]
        lowres = whole.reshape(rows // coarse, coarse, columns // coarse, coarse, 3).mean(axis=(1, 3)).astype(np.uint8)
    return {
        "images": {"hires": image, "lowres": np.ascontiguousarray(lowres)},
        "scalefactors": {
            "spot_diameter_fullres": _SPOT,
            "fiducial_diameter_fullres": 1.6 * _SPOT,
            "tissue_hires_scalef": scale,
            "tissue_lowres_scalef": scale / coarse,
        },
        "metadata": {"chemistry_description": "simulated"},
    }


def _stained(
    xy: np.ndarray, looks: dict[str, np.ndarray], spot: np.ndarray, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Stain tissue: nuclei with haematoxylin, what is between them with eosin, (rows, columns, 3) in [0, 1]."""
    rows, columns = spot.shape
    fibres = gaussian_filter(rng.normal(size=spot.shape), 2.0 * max(scale, 0.25) * 4)
    eosin = looks["eosin"][spot] * np.exp(0.3 * fibres / fibres.std())

    owner = np.repeat(np.arange(len(xy)), rng.poisson(looks["density"] * np.sqrt(3) / 2))
    cell = np.array([1.0, np.sqrt(3) / 2]) * PITCH  # as large as the hexagon of a spot
    centers = (xy[owner] + rng.uniform(-0.5, 0.5, size=(len(owner), 2)) * cell) * scale
    radius = looks["radius"][owner] * rng.uniform(0.8, 1.2, size=len(owner)) * scale
    stain = np.zeros(rows * columns)
    weight = np.minimum(1, np.pi * radius**2)  # of discs smaller than a pixel
    reach = int(np.ceil(radius.max(initial=0)))
    corner = np.floor(centers).astype(int)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            column, row = (corner + (dx, dy)).T
            away = np.hypot(column + 0.5 - centers[:, 0], row + 0.5 - centers[:, 1])
            drawn = (away < radius + 0.5) & (column >= 0) & (row >= 0) & (column < columns) & (row < rows)
            covered = (weight * (radius + 0.5 - away).clip(0, 1))[drawn]
            np.add.at(stain, row[drawn] * columns + column[drawn], covered)
    haematoxylin = _NUCLEUS * stain.reshape(rows, columns).clip(0, 1) + 0.03
    density = haematoxylin[..., None] * _HAEMATOXYLIN + eosin[..., None] * _EOSIN
    return 10**-density + rng.normal(0, 0.015, size=(rows, columns, 1))
