"""Where an image shows tissue, and whether the spots lie there."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from lgdist_scvi.pp._image_source import TissueImage

_DARKEST = 0.5  # green light taken away; more says no more about what is tissue
_LEAST = 0.08  # green light that tissue takes away, at least
_GREY, _GLASS = 0.04, 0.14  # chroma of pens and frames, and of glass, at most
_OF_A_PATCH = 0.25  # tissue in the patch of a spot that lies on tissue: fat and tears are white
_WRONG, _FEW = 0.2, 0.8  # share of spots on tissue: surely not their image; worth a warning
_BETTER, _MUCH_BETTER = 0.03, 0.1  # more of the spots on tissue in another frame
_FITS = 0.8  # of the spots on tissue, in a frame that is worth naming


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
    """Tissue of one image, and of patches with an edge in pixels of its finest level."""

    def __init__(self, image: TissueImage, edge: float):
        from scipy.ndimage import uniform_filter

        mask = tissue_mask(image.thumbnail)
        self._factor = mask.shape[1] / image.shape[1]
        width = max(1, round(edge * self._factor))
        self._share = uniform_filter(mask.astype(np.float32), width, mode="constant")

    def share(self, pixels: np.ndarray) -> np.ndarray:
        """Share of tissue in patches with centres at `pixels` (x, y), (n, 2); 0 for centres beyond the image."""
        column, row = np.floor(pixels * self._factor).astype(int).T
        height, width = self._share.shape
        inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        return np.where(inside, self._share[row.clip(0, height - 1), column.clip(0, width - 1)], 0)

    def spots(self, pixels: np.ndarray) -> float:
        """Share of spots that lie on tissue."""
        return float(np.mean(self.share(pixels) >= _OF_A_PATCH))


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
    for name, (image, _, edge) in slides.items():
        tissues[name] = Tissue(image, edge)
        if len(slides) > 1:  # one image at a time is kept in memory
            image.release()
    shares = {}
    for slide, (image, coordinates, _) in slides.items():
        pixels = image.pixels(coordinates)
        share = shares[slide] = tissues[slide].spots(pixels)
        found = f"only {share:.0%} of the spots{'' if slide is None else f' of slide {slide!r}'} lie on tissue in {image.where}"
        frames = [(name, tissues[slide].spots(frame)) for name, frame in _frames(image, coordinates, factors)]
        for other, (its_image, *_) in slides.items():
            if other != slide:
                frames.append((f"in the image of slide {other!r}", tissues[other].spots(its_image.pixels(coordinates))))
        name, best = max(frames, key=lambda pair: pair[1])
        if best >= _FITS and best > share + _BETTER:
            wrong, certain = True, best > share + _MUCH_BETTER
            problem = f"{found}, but {best:.0%} would {name}; correct the coordinates or the image"
        else:
            wrong, certain = share < _FEW, share < _WRONG
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


def _frames(
    image: TissueImage, coordinates: np.ndarray, factors: Iterable[tuple[str, float]]
) -> Iterable[tuple[str, np.ndarray]]:
    """Other places that spots may be meant to have, and how to say so."""
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
    for name, factor in factors:
        yield f"with coordinates multiplied by {name} ({factor:.4g})", image.pixels(coordinates * factor)
