"""Features of patches that scores of images compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lgdist_scvi._patches import check_patches, resize_patches
from lgdist_scvi.pp._encoders import encode_patches, get_encoder

_BATCH = 16


def features_of(
    images: dict[str, np.ndarray], encoder: str | Callable[[Any], Any], size: int | None = None
) -> dict[str, np.ndarray]:
    """Encode patches, uint8 (n, edge, edge, 3), as float64 (n, d); features, (n, d), are taken as they are.

    Patches are first brought to the smallest size among them, so that none shows more detail than another.

    Raises
    ------
    ValueError
        If they are neither, or too few.
    """
    images = {name: np.asarray(values) for name, values in images.items()}
    for name, values in images.items():
        if values.dtype == np.uint8 or values.ndim != 2:
            check_patches(values, name)
        elif not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite features; leave those rows out")
        if len(values) < 2:
            raise ValueError(f"{name} holds {len(values)} of patches; at least 2 are needed")
    edges = [values.shape[1] for values in images.values() if values.ndim == 4]
    if not edges:
        return {name: values.astype(np.float64) for name, values in images.items()}
    if len(edges) < len(images):
        raise ValueError("give patches everywhere or features everywhere")
    reader = get_encoder(encoder, size)
    alike = {name: resize_patches(patches, min(edges)) for name, patches in images.items()}
    return {name: encode_patches(reader, patches, _BATCH).astype(np.float64) for name, patches in alike.items()}
