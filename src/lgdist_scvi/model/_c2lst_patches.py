"""Patches for the central model, from wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lgdist_scvi._patches import check_patches, resize_patches

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def collect_patches(patches: Any, size: int) -> np.ndarray:
    """Read patches and reduce them.

    Parameters
    ----------
    patches
        Array or zarr array, uint8 (n, edge, edge, 3); the path of a zarr array, or of a folder of pictures, each a patch; or a list of
        these.
    size
        Edge to which they are reduced.

    Returns
    -------
    uint8, (n, size, size, 3).

    Raises
    ------
    FileNotFoundError
        If a path leads nowhere.
    ValueError
        If there is no patch, or what is read are no patches.
    """
    if isinstance(patches, list | tuple):
        parts = [collect_patches(part, size) for part in patches]
        if not parts:
            raise ValueError(
                "patches is an empty list; pp.image_patches(adata, image, tissue=True) cuts tiles of the tissue"
            )
        return np.concatenate(parts)
    where = "patches"
    if isinstance(patches, str | PathLike):
        where = str(patches)
        patches = _read(Path(patches), size)
    check_patches(patches, where)
    if not patches.shape[0]:
        raise ValueError(f"{where} holds no patch")
    return resize_patches(patches, size)


def _read(path: Path, size: int) -> Any:
    if not path.exists():
        raise FileNotFoundError(
            f"{str(path)!r} is not there; pass patches, or the path of a zarr array or a folder of pictures"
        )
    if path.is_dir() and ((path / "zarr.json").exists() or (path / ".zarray").exists()):
        import zarr

        return zarr.open_array(path, mode="r")
    pictures = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in _PICTURES] if path.is_dir() else []
    if not pictures:
        raise ValueError(f"{str(path)!r} is neither a zarr array nor a folder with pictures ({', '.join(_PICTURES)})")
    return np.concatenate([resize_patches(_picture(one)[None], size) for one in pictures])


def _picture(path: Path) -> np.ndarray:
    """The square in the middle of a picture, uint8 (edge, edge, 3)."""
    from PIL import Image

    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return pixels[top : top + edge, left : left + edge]


def listed_sources(patches: Any) -> Sequence[str]:
    """Name the sources of patches, for the record."""
    parts = patches if isinstance(patches, list | tuple) else [patches]
    return [str(part) if isinstance(part, str | PathLike) else f"array {tuple(part.shape)}" for part in parts]
