"""Where an image shows tissue, and whether the spots lie there."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from lgdist_scvi._lattice import lattice
from lgdist_scvi.pp._image_source import TissueImage

_DARKEST = 0.5  # green light taken away; more says no more about what is tissue
_LEAST = 0.08  # green light that tissue takes away, at least
_GREY, _GLASS = 0.04, 0.14  # chroma of pens and frames, and of glass, at most
_OF_A_PITCH = 1.15  # squares of this edge around spots of a lattice leave no gaps
_OF_A_PATCH = 0.25  # tissue in the patch of a spot that lies on tissue: fat and tears are white
_WRONG, _FEW = 0.2, 0.8  # share of spots on tissue: surely not their image; worth a warning
_BETTER, _MUCH_BETTER = 0.03, 0.1  # more of the spots on tissue in another frame
_FITS = 0.8  # of the spots on tissue, in a frame that is worth naming
_COVERED, _COVERED_BETTER = 0.7, 0.04  # overlap of all spots with all tissue in such a frame, and how much more it is


def tissue_mask(image: np.ndarray) -> np.ndarray:
    """Tell tissue from glass: it takes away green light (Otsu's threshold) and, in a coloured image, has a colour.

    Both are needed: eosin that has run into the glass is as colourful as pale tissue, but lets green through; black
    frames and pens take away green, but have no colour. From an image or its thumbnail, uint8 (height, width, 3), to
    True on tissue, (height, width).
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    smooth = gaussian_filter(image.astype(np.float32) / 255, (1, 1, 0))
    chroma, green = np.ptp(smooth, axis=2), smooth[..., 1]
    coloured = np.quantile(chroma, 0.99) > _GREY
    border = np.concatenate([green[0], green[-1], green[:, 0], green[:, -1]])
    if not coloured and np.median(border) < green.mean():  # bright on black
        green = 1 - green
    white = max(float(np.quantile(green, 0.95)), 1e-3)
    taken = ((white - green) / white).clip(0, _DARKEST)
    tissue = taken > threshold_otsu(taken) if np.ptp(taken) > 0 else np.zeros(taken.shape, dtype=bool)
    if coloured and chroma[~tissue].mean() > _GLASS:  # nothing but tissue
        return np.ones_like(tissue)
    if not tissue.any() or taken[tissue].mean() < _LEAST:
        return np.zeros_like(tissue)
    return tissue & (chroma > _GREY) if coloured else tissue


class Tissue:
    """Tissue of one image, and of patches with an edge in pixels of its finest level.

    `pitch` is the distance of neighbouring spots in these pixels; ``None``: that of patches.
    """

    def __init__(self, image: TissueImage, edge: float, pitch: float | None = None):
        from scipy.ndimage import uniform_filter

        self._mask = tissue_mask(image.thumbnail)
        self._factor = self._mask.shape[1] / image.shape[1]
        self._spot = max(1, round(_OF_A_PITCH * (pitch or edge) * self._factor))
        width = max(1, round(edge * self._factor))
        self._share = uniform_filter(self._mask.astype(np.float32), width, mode="constant")

    def share(self, pixels: np.ndarray) -> np.ndarray:
        """Share of tissue in patches with centres at `pixels` (x, y), (n, 2); 0 for centres beyond the image."""
        column, row, inside = self._places(pixels)
        height, width = self._share.shape
        return np.where(inside, self._share[row.clip(0, height - 1), column.clip(0, width - 1)], 0)

    def spots(self, pixels: np.ndarray) -> float:
        """Share of spots that lie on tissue."""
        return float(np.mean(self.share(pixels) >= _OF_A_PATCH))

    def overlap(self, pixels: np.ndarray) -> float:
        """Part of the area of spots and tissue together that is both (intersection over union)."""
        from scipy.ndimage import maximum_filter

        column, row, inside = self._places(pixels)
        covered = np.zeros_like(self._mask)
        covered[row[inside], column[inside]] = True
        covered = maximum_filter(covered, self._spot)
        return float((covered & self._mask).sum() / max(1, (covered | self._mask).sum()))

    def _places(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Column and row in the thumbnail, and whether they lie inside."""
        column, row = np.floor(pixels * self._factor).astype(int).T
        height, width = self._mask.shape
        return column, row, (column >= 0) & (row >= 0) & (column < width) & (row < height)


def check_spots(
    slides: Mapping[str | None, tuple[TissueImage, np.ndarray, float]], factors: Iterable[tuple[str, float]]
) -> dict[str | None, float]:
    """Refuse images in which spots lie beside the tissue; the share of spots on tissue, for each slide.

    Parameters
    ----------
    slides
        For each slide its image, (x, y) of its spots, (n, 2), and the edge of a patch in pixels of the finest level.
    factors
        Names and values of scale factors that coordinates may lack.

    Raises
    ------
    ValueError
        If there is hardly a spot on tissue, or there are many more once axes are swapped or mirrored, coordinates
        scaled, or the image of another slide taken.

    Warns
    -----
    UserWarning
        If there are some more then, or less than 80 % of the spots are on tissue.
    """
    tissues = {}
    for name, (image, coordinates, edge) in slides.items():
        pitch = lattice(coordinates)[1] * image.scale
        tissues[name] = Tissue(image, edge, pitch if np.isfinite(pitch) else None)
        if len(slides) > 1:  # one image at a time is kept in memory
            image.release()
    shares = {}
    for slide, (image, coordinates, _) in slides.items():
        pixels = image.pixels(coordinates)
        share = shares[slide] = tissues[slide].spots(pixels)
        spots = f"spots{'' if slide is None else f' of slide {slide!r}'}"
        found = f"only {share:.0%} of the {spots} lie on tissue in {image.where}"
        turned = list(_turned(image, coordinates))
        scaled = [
            (f"with coordinates multiplied by {key} ({value:.4g})", coordinates * value) for key, value in factors
        ]
        frames = [(name, tissues[slide].spots(frame)) for name, frame in turned]
        frames += [(name, tissues[slide].spots(image.pixels(frame))) for name, frame in scaled]
        for other, (its_image, *_) in slides.items():
            if other != slide:
                frames.append((f"in the image of slide {other!r}", tissues[other].spots(its_image.pixels(coordinates))))
        name, best = max(frames, key=lambda pair: pair[1])
        if best >= _FITS and best > share + _BETTER:
            wrong, certain = True, best > share + _MUCH_BETTER
            problem = f"{found}, but {best:.0%} would {name}; correct the coordinates or the image"
        else:
            wrong, certain = share < _FEW, share < _WRONG
            if not wrong:
                _check_overlap(tissues[slide], pixels, turned, f"{spots} and tissue in {image.where}")
            height, width = image.shape
            reach = " x ".join(f"{value:,.0f}" for value in pixels.max(axis=0))
            problem = (
                f"{found}: it {'is' if certain else 'may be'} of another slide or scale ({width:,} x {height:,} pixels, spots reach "
                f"{reach}); pass the image of this slide at the resolution of the coordinates, or image_res_key=... for its scale "
                "factor"
            )
        if certain:
            raise ValueError(f"{problem}, or pass check_tissue=False")
        if wrong:
            warnings.warn(problem, stacklevel=4)
    return shares


def _check_overlap(
    tissue: Tissue, pixels: np.ndarray, turned: Iterable[tuple[str, np.ndarray]], spots_and_tissue: str
) -> None:
    """Warn of a frame in which tissue lies where the spots are, but more of it would in another.

    Spots of a part of the tissue overlap little with all of it in any frame, and tell nothing.
    """
    overlap = tissue.overlap(pixels)
    name, best = max(((name, tissue.overlap(frame)) for name, frame in turned), key=lambda pair: pair[1])
    if best >= _COVERED and best > overlap + _COVERED_BETTER:
        warnings.warn(
            f"{spots_and_tissue} overlap by {overlap:.0%}, but by {best:.0%} {name}; correct the coordinates or the image",
            UserWarning,
            stacklevel=5,
        )


def _turned(image: TissueImage, coordinates: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    """Pixels of spots with axes swapped or mirrored, and how to say so."""
    extent = np.array(image.shape[::-1], dtype=np.float64)
    for step, swapped in ((1, ""), (-1, "with x and y swapped")):
        pixels = image.pixels(coordinates[:, ::step])
        for mirror, mirrored in (
            ((0, 0), ""),
            ((1, 0), "with x mirrored (width - x)"),
            ((0, 1), "with y mirrored (height - y)"),
            ((1, 1), "with x and y mirrored (width - x, height - y)"),
        ):
            if swapped or mirrored:
                yield (
                    " and then ".join(part for part in (swapped, mirrored) if part),
                    np.where(mirror, extent - pixels, pixels),
                )
