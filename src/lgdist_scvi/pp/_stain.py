"""Colour and stain of patches, without a network."""

from __future__ import annotations

import numpy as np

_QUANTILES = (0.1, 0.5, 0.9)
_NUCLEUS = 0.08  # haematoxylin of a pixel that belongs to a nucleus, in units of rgb2hed


def stain_features(patches: np.ndarray) -> np.ndarray:
    """Describe patches, uint8, (n, size, size, 3), by their colours and by their load of haematoxylin and eosin.

    Stains are separated by Ruifrok and Johnston's matrix (2001; :func:`skimage.color.rgb2hed`, in its units).

    Returns
    -------
    float32, (n, 27): mean, standard deviation and 10, 50 and 90 % quantiles of red, green, blue, haematoxylin and
    eosin, share of pixels in nuclei, and mean step of haematoxylin from pixel to pixel.
    """
    from skimage.color import rgb2hed

    hed = rgb2hed(patches)[..., :2].astype(np.float32)
    channels = np.concatenate([patches.astype(np.float32) / 255, hed], axis=-1).reshape(len(patches), -1, 5)
    haematoxylin = hed[..., 0]
    steps = [np.abs(np.diff(haematoxylin, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    statistics = [channels.mean(axis=1), channels.std(axis=1), *np.quantile(channels, _QUANTILES, axis=1)]
    nuclei = (haematoxylin > _NUCLEUS).mean(axis=(1, 2))
    return np.column_stack([*statistics, nuclei, np.mean(steps, axis=0)]).astype(np.float32)
