"""An image of tissue, read one window at a time, and patches of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_WINDOW = 1 << 24  # pixels read in one go where the image itself is not stored in larger pieces
_THUMBNAIL = 1200  # pixels on the longer side
_DEPTHS = np.array([255, 1023, 4095, 16383, 65535])  # white of an image with more than 8 bits a channel
_ENOUGH = 0.9  # of the pixels asked for: a coarser level of a pyramid is read where it has them


@dataclass
class Level:
    """One resolution of an image.

    Attributes
    ----------
    shape
        Height and width in pixels.
    read
        Gives the pixels in a slice of rows and a slice of columns, (height, width) or (height, width, channels); slices
        may end beyond the image.
    chunk
        Height and width of the pieces that are decoded as a whole; (1, 1) where any window costs what it holds.
    """

    shape: tuple[int, int]
    read: Callable[[slice, slice], np.ndarray]
    chunk: tuple[int, int] = (1, 1)


class TissueImage:
    """An image in the frame of the spots.

    Parameters
    ----------
    levels
        Resolutions of the image, finest first.
    where
        Its name, for messages.
    matrix
        Takes coordinates (x, y, 1) to pixels (x, y) of the finest level, (2, 3); ``None``: they are these pixels.
    microns_per_pixel
        Micrometres of a pixel of the finest level, if the file says so.
    release, close
        Forgets decoded pixels, which are decoded again where they are needed; called when the image is no longer
        needed.
    """

    def __init__(
        self,
        levels: list[Level],
        where: str,
        matrix: np.ndarray | None = None,
        microns_per_pixel: float | None = None,
        release: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ):
        self.levels, self.where = levels, where
        self.matrix = np.eye(2, 3) if matrix is None else np.asarray(matrix, dtype=np.float64)
        self._microns, self.release, self._close = microns_per_pixel, release, close

    def __enter__(self) -> TissueImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._close()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest level."""
        return self.levels[0].shape

    @property
    def scale(self) -> float:
        """Pixels of the finest level per unit of the coordinates."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    @property
    def microns_per_unit(self) -> float | None:
        """Micrometres per unit of the coordinates, if the file says so."""
        return None if self._microns is None else self._microns * self.scale

    def scaled(self, factor: float) -> TissueImage:
        """Give the same image for coordinates of which one unit is `factor` pixels."""
        return TissueImage(
            self.levels, self.where, self.matrix * [factor, factor, 1], self._microns, self.release, self._close
        )

    def pixels(self, coordinates: np.ndarray) -> np.ndarray:
        """Pixels (x, y) of the finest level at coordinates, (n, 2) each."""
        return coordinates @ self.matrix[:, :2].T + self.matrix[:, 2]

    @cached_property
    def thumbnail(self) -> np.ndarray:
        """The whole image, up to 2,400 pixels on the longer side, uint8 (height, width, 3)."""
        return self._rgb(self._overview)

    @cached_property
    def _overview(self) -> np.ndarray:
        """The thumbnail in the values of the image."""
        level = next((one for one in self.levels[::-1] if max(one.shape) >= _THUMBNAIL), self.levels[0])
        step = max(1, max(level.shape) // _THUMBNAIL)
        pick = max(1, step // 4)  # of each square of `step` pixels, 4 x 4 are averaged: a single one would be noise
        rows, columns = (
            range(0, n, max(step, block // step * step))
            for n, block in zip(level.shape, _block(level, 64), strict=True)
        )
        bands = []
        for top in rows:
            windows = [(slice(top, top + rows.step), slice(left, left + columns.step)) for left in columns]
            parts = [level.read(*window)[::pick, ::pick] for window in windows]
            bands.append(np.concatenate([_shrink(part, step // pick) for part in parts], axis=1))
        return np.concatenate(bands, axis=0)

    def patches(self, centers: np.ndarray, edge: float, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Cut square patches, in an order in which every part of the image is read once.

        Centres (x, y), (n, 2), and the edge of a patch are in pixels of the finest level; `size` is the edge of the
        patches given.

        Yields
        ------
        Row of `centers`, and its patch, uint8 (size, size, 3). What lies beyond the image is white.
        """
        level, factor = self.levels[0], 1.0
        for coarser in self.levels[1:]:
            if edge * coarser.shape[1] / self.shape[1] >= _ENOUGH * size:
                level, factor = coarser, coarser.shape[1] / self.shape[1]
        edge = edge * factor
        corners = centers * factor - edge / 2
        if abs(edge - size) < 0.5:  # no pixel is interpolated where none has to be
            edge, corners = float(size), np.floor(corners + 0.5)
        low = np.floor(corners).astype(int)
        high = np.ceil(corners + edge).astype(int)
        block = np.array(_block(level, int(np.ceil(edge))))[::-1]
        places = np.floor((low + high) / 2 / block).astype(int)
        order = np.lexsort((places[:, 0], places[:, 1]))
        same = (np.diff(places[order], axis=0) == 0).all(axis=1)
        for rows in np.split(order, np.flatnonzero(~same) + 1) if len(order) else []:
            limits = np.array(level.shape)[::-1]
            start, stop = low[rows].min(axis=0).clip(0, limits), high[rows].max(axis=0).clip(0, limits)
            inside = (stop > start).all()
            window = level.read(slice(start[1], stop[1]), slice(start[0], stop[0])) if inside else None
            for row in rows:
                yield row, self._patch(window, start, low[row], high[row], corners[row], edge, size)

    def _patch(
        self,
        window: np.ndarray | None,
        start: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        corner: np.ndarray,
        edge: float,
        size: int,
    ) -> np.ndarray:
        """Cut one patch out of a window that starts at `start`."""
        from PIL import Image

        patch = np.full((*(high - low)[::-1], 3), 255, dtype=np.uint8)
        if window is not None:
            first = (low - start).clip(0)
            part = window[first[1] : max(0, high[1] - start[1]), first[0] : max(0, high[0] - start[0])]
            if part.size:
                x, y = (start + first) - low
                patch[y : y + part.shape[0], x : x + part.shape[1]] = self._rgb(part)
        if patch.shape[:2] == (size, size) and edge == size:
            return patch
        x, y = corner - low
        image = Image.fromarray(patch)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + edge, y + edge)))

    @cached_property
    def _white(self) -> float:
        """Value of a white pixel: the end of the range that the values of the thumbnail lie in."""
        values = self._overview
        if values.dtype in (np.uint8, bool):
            return 255.0 if values.dtype == np.uint8 else 1.0
        largest, smallest = float(values.max(initial=0)), float(values.min(initial=0))
        if not np.isfinite([largest, smallest]).all() or smallest < 0 or largest > _DEPTHS[-1]:
            raise ValueError(
                f"{self.where} has values from {smallest:g} to {largest:g}; give colours as whole numbers from 0 to 255 (or "
                "65,535), or as floats from 0 to 1"
            )
        if values.dtype.kind == "f" and largest <= 1:
            return 1.0
        return float(_DEPTHS[np.searchsorted(_DEPTHS, largest)])

    def _rgb(self, window: np.ndarray) -> np.ndarray:
        """Colours, uint8 (height, width, 3), of grey values or colours of any depth; transparent is white."""
        window = np.asarray(window)
        window = window[..., None] if window.ndim == 2 else window
        if window.dtype != np.uint8:
            window = (window * (255 / self._white)).round().clip(0, 255).astype(np.uint8)
        n_channels = window.shape[2]
        if n_channels in (2, 4):
            alpha = window[..., -1:].astype(np.uint16)
            window = ((window[..., :-1] * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)
        return np.repeat(window, 3, axis=2) if n_channels < 3 else window


def _shrink(pixels: np.ndarray, step: int) -> np.ndarray:
    """Average squares of `step` x `step` pixels, those at the far edges smaller; keeps the kind of values."""
    if step == 1:
        return pixels
    sums = pixels.astype(np.float32)
    counts = [np.diff(np.append(np.arange(0, n, step), n)) for n in pixels.shape[:2]]
    for axis, count in enumerate(counts):
        sums = np.add.reduceat(sums, np.arange(0, pixels.shape[axis], step), axis=axis)
        sums /= count.reshape([-1 if i == axis else 1 for i in range(sums.ndim)])
    return sums.astype(pixels.dtype)


def _block(level: Level, edge: int) -> tuple[int, int]:
    """Height and width of the windows in which a level is read: whole chunks, and not much larger than `_WINDOW` pixels."""
    height, width = (min(chunk, length) for chunk, length in zip(level.chunk, level.shape, strict=True))
    side = max(2 * edge, 2048)
    width *= max(1, min(side, level.shape[1]) // width)
    height *= max(1, min(side, max(edge, _WINDOW // width)) // height)
    return height, width
