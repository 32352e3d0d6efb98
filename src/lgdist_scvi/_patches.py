"""Square patches of tissue in colour: what they are, and how they are resized."""

from __future__ import annotations

from typing import Any

import numpy as np

_BLOCK = 256


def check_patches(patches: Any, where: str) -> None:
    """Refuse what are no patches.

    Raises
    ------
    ValueError
        If they are not uint8, (n, size, size, 3).
    """
    shape, dtype = getattr(patches, "shape", ()), getattr(patches, "dtype", None)
    if dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(f"{where} must hold square patches in colour, uint8 (n, size, size, 3), got {dtype} {shape}")


def resize_patches(patches: Any, size: int) -> np.ndarray:
    """Resize patches, an array or a store, as :func:`~lgdist_scvi.pp.image_patches` does: uint8 (n, size, size, 3)."""
    from PIL import Image

    n = patches.shape[0]  # stores have no length
    resized = np.empty((n, size, size, 3), dtype=np.uint8)
    for start in range(0, n, _BLOCK):
        block = np.asarray(patches[start : start + _BLOCK])
        if block.shape[1] != size:
            block = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in block]
        resized[start : start + _BLOCK] = block
    return resized
