"""Where patches are written to as they are cut."""

from __future__ import annotations

import shutil
from os import PathLike
from pathlib import Path

import numpy as np


class PatchStore:
    """Patches in memory or in a zarr array that appears when it is whole."""

    def __init__(self, path: str | PathLike[str] | None, shape: tuple[int, ...]):
        self._path = None if path is None else Path(path)
        if self._path is None:
            self.array = np.empty(shape, dtype=np.uint8)
            return
        import zarr

        if self._path.exists():
            raise FileExistsError(f"{str(path)!r} exists; remove it or name another store")
        self._part = self._path.with_name(f".{self._path.name}.part")
        shutil.rmtree(self._part, ignore_errors=True)
        self.array = zarr.create_array(self._part, shape=shape, dtype=np.uint8, chunks=(min(64, shape[0]), *shape[1:]))

    def write(self, rows: np.ndarray, patches: np.ndarray) -> None:
        """Write patches to rows."""
        if self._path is None:
            self.array[rows] = patches
        else:
            self.array.oindex[rows] = patches

    def __enter__(self) -> PatchStore:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if self._path is None:
            return
        if failed is not None:
            shutil.rmtree(self._part, ignore_errors=True)
        else:
            self._part.rename(self._path)
