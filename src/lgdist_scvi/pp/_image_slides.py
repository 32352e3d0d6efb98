"""Which image belongs to which spots, and how large a patch is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from lgdist_scvi._anndata import get_coordinates, get_obs, get_samples
from lgdist_scvi._checks import check_has_spots, list_names, mapping, require_key
from lgdist_scvi._lattice import lattice
from lgdist_scvi._slides import choose_sample_key
from lgdist_scvi.pp._image_files import open_image
from lgdist_scvi.pp._image_source import TissueImage

_VISIUM_PITCH, _VISIUM_SPOT = 100.0, 65.0  # micrometres; Space Ranger's diameter is that of a spot with its rim
_PATCH = 112.0  # micrometres: 224 pixels at 20 x magnification, what encoders of tissue are trained on
_PIXELS = 224.0  # where nothing else is known


@dataclass(frozen=True)
class PatchSize:
    """Edge of a patch as the user gave it; see :func:`~lgdist_scvi.pp.image_features`."""

    um: float | None
    px: float | None
    microns_per_pixel: float | None

    def __post_init__(self) -> None:
        named = {"patch_um": self.um, "patch_px": self.px, "microns_per_pixel": self.microns_per_pixel}
        for name, value in named.items():
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} must be positive, got {value!r}")
        if self.um is not None and self.px is not None:
            raise ValueError("patch_um and patch_px both give the edge of a patch; pass one of them")

    def edge(self, coordinates: np.ndarray, factors: Mapping[str, Any], image: TissueImage) -> tuple[float, float]:
        """Edge of a patch in units of the coordinates, and in micrometres (NaN if they are not known)."""
        kind, pitch = lattice(coordinates)
        known = (
            self.microns_per_pixel,
            factors.get("microns_per_pixel"),
            _VISIUM_PITCH / pitch if kind == "hexagonal" else None,
            _VISIUM_SPOT / factors["spot_diameter_fullres"] if factors.get("spot_diameter_fullres") else None,
            image.microns_per_unit,
        )
        microns = float(next((value for value in known if value), np.nan))
        if self.px is not None:
            edge = float(self.px)
        elif self.um is not None:
            edge = self.um / microns
        elif np.isfinite(microns):
            edge = np.nanmax([_PATCH / microns, pitch])
        else:
            edge = pitch if np.isfinite(pitch) else _PIXELS / image.scale
        if not np.isfinite(edge):
            raise ValueError(
                "patch_um needs the micrometres of a pixel, which neither the scale factors nor the spots tell; pass "
                "microns_per_pixel=..., or patch_px=... instead"
            )
        return float(edge), float(edge * microns)


@dataclass(frozen=True)
class Slide:
    """Spots of one slide and their image."""

    name: str | None
    spots: np.ndarray  # rows of adata
    coordinates: np.ndarray  # (n_spots, 2)
    pixels: np.ndarray  # the same in pixels of the image's finest level
    image: TissueImage
    edge: float  # of a patch, in units of the coordinates
    edge_um: float  # NaN if not known
    factors: list[tuple[str, float]]  # scale factors that coordinates may lack

    def moved(self, rows: np.ndarray, pixels: np.ndarray) -> Slide:
        """Give the slide with other places in its image."""
        return replace(self, spots=rows, pixels=pixels)


def open_slides(
    adata: AnnData,
    image: Any,
    size: PatchSize,
    image_res_key: str | None,
    sample_key: str | None,
    spatial_key: str,
    stack: ExitStack,
) -> list[Slide]:
    """Open the image of each slide that has one; `stack` closes them. Other arguments are those of `pp.image_features`.

    Raises KeyError if coordinates, slides or images are absent; ValueError if there is no spot, or slides and images do
    not fit each other.
    """
    check_has_spots(adata)
    libraries = mapping(adata.uns.get(spatial_key))
    where = f"adata.uns[{spatial_key!r}]"
    if image is None and not libraries:
        raise KeyError(f"there is no image in {where}; pass image=... (a path, an array, or a dict slide -> image)")
    if image is None:
        images = dict.fromkeys(map(str, libraries))
    elif isinstance(image, Mapping) and not hasattr(image, "children"):
        if not image:
            raise ValueError("image is an empty dict; pass a dict slide -> image, or None for the images of adata.uns")
        if absent := [name for name, one in image.items() if one is None]:
            raise ValueError(f"image is None for slides {list_names(absent)}; leave them out of the dict")
        images = {str(name): one for name, one in image.items()}
    else:
        images = {None: image}
    if sample_key is None and len(images) > 1:
        sample_key = choose_sample_key(adata, None, spatial_key, stacklevel=4)
    coordinates = get_coordinates(adata, spatial_key, sample_key)[:, :2]
    samples = get_samples(adata, sample_key)
    names = [None] if sample_key is None else [str(name) for name in pd.unique(get_obs(adata)[sample_key])]
    images = _of_slides(images, names, adata)

    slides = []
    for code, name in enumerate(names):
        if name not in images:
            continue
        library = _library(libraries, name, images)
        factors = library.get("scalefactors", {})
        opened = _open(images[name], library, name, image_res_key, where, len(images) > 1)
        stack.enter_context(opened)
        spots = np.flatnonzero(samples == code)
        edge = size.edge(coordinates[spots], factors, opened)
        scales = [
            (key, float(factors[key])) for key in factors if key.startswith("tissue_") and key.endswith("_scalef")
        ]
        pixels = opened.pixels(coordinates[spots])
        slides.append(Slide(name, spots, coordinates[spots], pixels, opened, *edge, scales))
    return slides


def _of_slides(images: dict[str | None, Any], names: list[str | None], adata: AnnData) -> dict[str | None, Any]:
    """Match images to slides by their names; one image and one slide need no name."""
    if len(images) == 1 and len(names) == 1:
        return dict(zip(names, images.values(), strict=True))
    if None in images:
        raise ValueError(
            f"one image was passed for {len(names):,} slides; pass a dict slide -> image, or no sample_key if all spots lie in "
            "this image"
        )
    if None in names:
        fits = [key for key in adata.obs if set(adata.obs[key].astype(str)) & set(images)]
        raise ValueError(
            f"there are {len(images):,} images ({list_names(images)}); pass sample_key=..., the column of adata.obs that names the "
            f"slide of each spot{f', such as {fits[0]!r}' if fits else ''}"
        )
    found = {name: images[name] for name in names if name in images}
    if not found:
        raise KeyError(
            f"none of the images ({list_names(images) or 'none'}) is named like a slide ({list_names(names)})"
        )
    return found


def _library(libraries: Mapping[str, Any], name: str | None, images: Mapping[str | None, Any]) -> Mapping[str, Any]:
    """Entry of a slide in ``uns["spatial"]``; the only one will do for the only slide."""
    found = {str(key): library for key, library in libraries.items() if isinstance(library, Mapping)}
    only = next(iter(found.values())) if len(found) == 1 and len(images) == 1 else {}
    return found.get(str(name), only)


def _open(
    image: Any, library: Mapping[str, Any], name: str | None, resolution: str | None, where: str, several: bool
) -> TissueImage:
    """Open the image of one slide, or the one that its library holds."""
    factors = library.get("scalefactors", {})
    of_slide = f" of slide {name!r}" if several else ""
    remedy = "it is written by Space Ranger's readers; pass image=..., in full resolution, instead"
    if image is not None:
        opened = open_image(image, f"the image{of_slide}")
        if resolution is None:
            return opened
        require_key(factors, f"tissue_{resolution}_scalef", f"the scale factors{of_slide} in {where}", remedy)
        return opened.scaled(float(factors[f"tissue_{resolution}_scalef"]))
    images = library.get("images", {})
    scales = {key: float(factors[f"tissue_{key}_scalef"]) for key in images if f"tissue_{key}_scalef" in factors}
    if resolution is not None or not scales:
        resolution = resolution or "hires"
        require_key(images, resolution, f"the images{of_slide} in {where}", remedy)
        require_key(scales, resolution, f"the scale factors{of_slide} in {where}", remedy)
    resolution = resolution or max(scales, key=scales.get)
    return open_image(images[resolution], f"the {resolution} image{of_slide}").scaled(scales[resolution])
