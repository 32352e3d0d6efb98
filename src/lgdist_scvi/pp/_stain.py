"""Colour, stain and texture of patches, without a network."""

from __future__ import annotations

import numpy as np

_QUANTILES = (0.1, 0.5, 0.9)
_NUCLEUS = 0.08  # haematoxylin of a pixel that belongs to a nucleus, in units of rgb2hed
_N_OCTAVES = 5
_SIGMA = 1.5  # pixels of an octave's own resolution
_GRID = 4  # parts of an edge
_TINY = 1e-6


def stain_features(patches: np.ndarray) -> np.ndarray:
    """Describe patches, uint8, (n, size, size, 3), by their colours, by their stains, and by the texture of both.

    Stains are separated by Ruifrok and Johnston's matrix (2001; :func:`skimage.color.rgb2hed`, in its units).

    Returns
    -------
    float32, (n, 59): mean, standard deviation and 10, 50 and 90 % quantiles of red, green, blue, haematoxylin and eosin,
    share of pixels in nuclei, and mean step of haematoxylin from pixel to pixel; then of each of both stains, in five octaves, the
    logarithm of the contrast, its skewness (dark grains or light ones) and how far edges run in one direction (0 to 1), and
    the standard deviation between the parts of a grid.
    """
    from skimage.color import rgb2hed

    stains = rgb2hed(patches)[..., :2].astype(np.float32)
    channels = np.concatenate([patches.astype(np.float32) / 255, stains], axis=-1).reshape(len(patches), -1, 5)
    haematoxylin = stains[..., 0]
    steps = [np.abs(np.diff(haematoxylin, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    statistics = [channels.mean(axis=1), channels.std(axis=1), *np.quantile(channels, _QUANTILES, axis=1)]
    nuclei = (haematoxylin > _NUCLEUS).mean(axis=(1, 2))
    texture = [_texture(stains[..., stain]) for stain in range(2)]
    return np.column_stack([*statistics, nuclei, np.mean(steps, axis=0), *texture]).astype(np.float32)


def _texture(stain: np.ndarray) -> np.ndarray:
    """Contrast, skewness and direction of each octave, and unevenness, of (n, size, size); (n, 16)."""
    from scipy.ndimage import gaussian_filter

    part = max(stain.shape[1] // _GRID, 1)
    whole = stain[:, : part * _GRID, : part * _GRID]
    grid = whole.reshape(len(stain), -1, part, whole.shape[2] // part, part).mean(axis=(2, 4))
    columns = []
    for _ in range(_N_OCTAVES):
        blurred = gaussian_filter(stain, (0, _SIGMA, _SIGMA))
        band = stain - blurred
        contrast = band.std(axis=(1, 2)) + _TINY
        down, right = np.diff(blurred, axis=1)[:, :, :-1], np.diff(blurred, axis=2)[:, :-1]
        along_y, along_x, both = ((a * b).mean(axis=(1, 2)) for a, b in ((down, down), (right, right), (down, right)))
        direction = np.hypot(along_y - along_x, 2 * both) / (along_y + along_x + _TINY**2)
        columns += [np.log(contrast), (band**3).mean(axis=(1, 2)) / contrast**3, direction]
        if min(blurred.shape[1:]) >= 4:  # else there is no coarser one
            stain = blurred[:, ::2, ::2]
    return np.column_stack([*columns, grid.std(axis=(1, 2))])
