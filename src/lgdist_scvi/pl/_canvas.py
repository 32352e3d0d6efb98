"""One slide as squidpy draws it: its spots sized by their spacing, over its image if it has one that can be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from lgdist_scvi._checks import list_names, mapping
from lgdist_scvi._lattice import lattice
from lgdist_scvi._squidpy import squidpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

_MARGIN = 1.5  # outside the tissue, in pitches
_DIAMETER = {"hexagonal": 0.95, "square": 0.95, "irregular": 1.3}  # of spots, in pitches
_SMALLER = 0.85  # spots over an image, so that tissue shows between them


class Canvas:
    """Spots of one slide, ready to be drawn in the colours of any values.

    Parameters
    ----------
    coordinates
        (n_spots, 2) or more columns.
    libraries
        ``uns["spatial"]`` as Space Ranger's readers write it: for each slide a mapping with `images` and
        `scalefactors`. Whatever else it is, or holds, means that there is no image.
    slide
        Name of the slide in `libraries`; another name will do where there is but one.
    img_res_key
        Image to draw; ``None``: the finest.
    size
        Factor on the size of spots.
    """

    def __init__(
        self, coordinates: np.ndarray, libraries: Any, slide: str | None, img_res_key: str | None, size: float
    ):
        from scipy.spatial import cKDTree

        kind, pitch = lattice(coordinates)
        coordinates = coordinates[:, :2]
        if kind == "irregular":
            pitch = np.median(cKDTree(coordinates).query(coordinates, k=2)[0][:, 1]) if len(coordinates) > 1 else 1.0
        self.shape = "square" if kind == "square" else "circle"
        self.diameter, self.scale, self.image = size * pitch * _DIAMETER[kind], 1.0, None
        self.coordinates = coordinates
        for image, scale in _images(libraries, slide, img_res_key):
            # image pixels on and around the tissue, columns first
            low = np.floor((coordinates.min(axis=0) - _MARGIN * pitch) * scale).clip(0).astype(int)
            high = np.ceil((coordinates.max(axis=0) + _MARGIN * pitch) * scale).clip(0).astype(int)
            crop = image[low[1] : high[1], low[0] : high[0]]
            if crop.size:  # else the image is of another place, or its scale of another image
                self.image, self.scale, self.coordinates = crop, scale, coordinates - low / scale
                break

    def draw_image(self, ax: Axes) -> None:
        """Draw the image alone; nothing if there is none."""
        if self.image is not None:
            ax.imshow(self.image, cmap=None if self.image.ndim == 3 else "gray")
        _bare(ax)

    def draw(self, values: np.ndarray, ax: Axes, norm: Normalize, cmap: str | Colormap, img_alpha: float) -> None:
        """Draw one value for each spot, (n_spots,); NaN is grey. `img_alpha`: opacity of the image under them."""
        sq = squidpy()
        diameter = self.diameter if self.image is None or not img_alpha else self.diameter * _SMALLER
        factors = {"tissue_hires_scalef": self.scale, "spot_diameter_fullres": diameter}
        images = {} if self.image is None else {"hires": self.image}
        canvas = AnnData(
            np.asarray(values, dtype=np.float32)[:, None],
            obsm={"spatial": self.coordinates},
            uns={"spatial": {"slide": {"images": images, "scalefactors": factors}}},
        )
        sq.pl.spatial_scatter(
            canvas,
            color=canvas.var_names[0],
            library_id="slide",
            shape=self.shape,
            img=self.image is not None,
            img_alpha=img_alpha,
            ax=ax,
            norm=norm,
            cmap=cmap,
            colorbar=False,
            edgecolors="none",
            na_color="0.85",
        )
        _bare(ax)


def _bare(ax: Axes) -> None:
    """Take away everything but what is drawn."""
    ax.set(xlabel="", ylabel="", title="", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _images(libraries: Any, slide: str | None, img_res_key: str | None) -> list[tuple[np.ndarray, float]]:
    """Images of a slide that can be drawn with their scales, finest first; none where it is not clear which are its own."""
    found = {}
    for name, library in mapping(libraries).items():
        if isinstance(library, Mapping):
            factors, images = mapping(library.get("scalefactors")), mapping(library.get("images"))
            scales = {resolution: _scale(factors.get(f"tissue_{resolution}_scalef")) for resolution in images}
            drawable = {resolution: _drawable(image) for resolution, image in images.items() if scales[resolution]}
            found[str(name)] = {key: (image, scales[key]) for key, image in drawable.items() if image is not None}
    found = found.get(str(slide), next(iter(found.values())) if len(found) == 1 else {})
    if img_res_key is None:
        return sorted(found.values(), key=lambda image: -image[1])
    if img_res_key not in found:
        raise KeyError(
            f"there is no image {img_res_key!r} with a scale factor for this slide; available: "
            f"{list_names(found) or 'none'}; img_res_key=None draws the finest, if there is any"
        )
    return [found[img_res_key]]


def _scale(factor: Any) -> float:
    """Image pixels per unit of the coordinates; 0 if it is not known."""
    try:
        return float(factor) if 0 < float(factor) < np.inf else 0.0
    except (TypeError, ValueError):
        return 0.0


def _drawable(image: Any) -> np.ndarray | None:
    """Grey values (height, width) or colours (height, width, 3 or 4), or nothing."""
    try:
        image = np.asarray(image)
    except (TypeError, ValueError):
        return None
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    return image if is_image and image.dtype.kind in "uif" else None
