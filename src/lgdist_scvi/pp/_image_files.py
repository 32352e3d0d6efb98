"""Opening images: files, pyramids, arrays and elements of SpatialData."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._checks import list_names, needs
from lgdist_scvi.pp._image_source import Level, TissueImage

if TYPE_CHECKING:
    from PIL import Image

_TIFF = (".tif", ".tiff", ".btf", ".svs")


def open_image(image: Any, where: str) -> TissueImage:
    """Open an image, called `where` in messages.

    It is the path of a TIFF (also tiled, pyramidal, OME), JPEG or PNG file, or of a format that OpenSlide reads; an
    array (numpy, dask, zarr) with grey values, colours, or colours and opacity, channels last or first; or an image
    element of SpatialData, of one or several scales.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the file is of a format that an absent package reads.
    ValueError
        If the file, or what was given, is not an image.
    """
    if isinstance(image, str | PathLike):
        path = Path(image)
        if not path.exists():
            raise FileNotFoundError(f"there is no image {str(path)!r}; pass the path of a TIFF, JPEG or PNG file")
        if path.is_dir():
            raise ValueError(
                f"{str(path)!r} is a folder; pass the path of a TIFF, JPEG or PNG file, or open what is in it: "
                "zarr.open_array(...), or an image of SpatialData, sdata[name]"
            )
        return _open_tiff(path) if path.suffix.lower() in _TIFF else _open_file(path)
    if hasattr(image, "images") and hasattr(image, "tables"):
        names = list_names(image.images)
        raise ValueError(f"{where} is a SpatialData object; pass one of its images, sdata[name] with name of {names}")
    if type(image).__name__ == "ImageContainer":  # of squidpy
        raise ValueError(f"{where} is an ImageContainer; pass one of its layers, image[{str(next(iter(image)))!r}]")
    if hasattr(image, "dims") or hasattr(image, "children"):
        return _open_element(image, where)
    if not hasattr(image, "shape"):
        raise ValueError(
            f"{where} is of type {type(image).__name__}; pass a path, an array (height, width, 3) or an image element of "
            "SpatialData (several slides: a dict slide -> image, with sample_key=...)"
        )
    return TissueImage([_level(image, where)], where)


def _level(array: Any, where: str, colours: Callable[[np.ndarray], np.ndarray] = lambda part: part) -> Level:
    """Level of an array, channels last or first, sliced only where it is read; `colours` of what it holds."""
    shape = tuple(array.shape)
    last = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 2, 3, 4))
    if not last and not (len(shape) == 3 and shape[0] in (1, 2, 3, 4)) or 0 in shape:
        raise ValueError(f"{where} has shape {shape}; an image is (height, width) or (height, width, 3 or 4)")
    if np.dtype(array.dtype).kind not in "buif":
        raise ValueError(
            f"{where} has values of type {array.dtype}; an image holds whole numbers, or floats from 0 to 1"
        )
    first_axis = 0 if last else 1
    chunks = getattr(array, "chunks", None)
    chunk = (1, 1)
    if chunks is not None:
        chunk = tuple(int(np.max(part)) for part in chunks[first_axis : first_axis + 2])

    def read(rows: slice, columns: slice) -> np.ndarray:
        part = array[rows, columns] if last else array[:, rows, columns]
        part = np.asarray(part.compute() if hasattr(part, "compute") else part)
        return colours(part if last else np.moveaxis(part, 0, -1))

    return Level(shape[first_axis : first_axis + 2], read, chunk)


def _open_tiff(path: Path) -> TissueImage:
    """Open a TIFF with all its levels; nothing is decoded yet."""
    import tifffile
    import zarr

    where = repr(path.name)
    with ExitStack() as failed:
        try:
            file = failed.enter_context(tifffile.TiffFile(path))
            series = file.series[0]
            colours = _colours(series.keyframe)
            levels = []
            for number, level in enumerate(series.levels):
                array = zarr.open_array(series.aszarr(level=number), mode="r")
                levels.append(_level(_Planes(array, level.axes), where, colours))
            levels[0].read(slice(0, 1), slice(0, 1))  # a codec that is absent says so now
        except Exception as error:  # tifffile, zarr and codecs raise all kinds
            raise ValueError(
                f"{where} cannot be read as an image ({str(error) or type(error).__name__}); save it as TIFF with colours "
                "(compressed ones may need pip install imagecodecs)"
            ) from error
        failed.pop_all()
    return TissueImage(levels, where, close=file.close)


def _colours(page: Any) -> Callable[[np.ndarray], np.ndarray]:
    """How values of a TIFF become colours: by its palette, from white that is 0, from inks.

    Raises
    ------
    ValueError
        If they stand for colours in another way.
    """
    kind, compressed = page.photometric.name, page.compression.name
    if kind == "PALETTE":
        palette = page.colormap.T
        palette = (palette // (257 if palette.max() > 255 else 1)).astype(np.uint8)
        return lambda part: palette[part]
    if kind == "MINISWHITE" and page.dtype.kind in "bu":
        return lambda part: ~part
    if kind == "SEPARATED" and page.samplesperpixel == 4 and page.dtype.kind == "u":
        full = np.iinfo(page.dtype).max
        return lambda part: ((full - part[..., :3]) * ((full - part[..., 3:]) / full)).astype(part.dtype)
    if kind in ("MINISBLACK", "RGB") or (kind == "YCBCR" and "JP" in compressed):  # the codec gives colours
        return lambda part: part
    raise ValueError(f"its colours are stored as {kind}, not as red, green and blue")


class _Planes:
    """Rows, columns and channels of an array that has further axes, of which the first plane is taken."""

    def __init__(self, array: Any, axes: str):
        kept = [
            axis for axis in range(array.ndim) if axes[axis] in "YX" or (axes[axis] in "SC" and array.shape[axis] > 1)
        ]
        self.array, self.kept = array, kept
        self.shape, self.dtype = tuple(array.shape[axis] for axis in kept), array.dtype
        self.chunks = tuple(array.chunks[axis] for axis in kept)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        index = dict(zip(self.kept, index, strict=False))
        every = tuple(index.get(axis, slice(None) if axis in self.kept else 0) for axis in range(self.array.ndim))
        return self.array[every]


def _open_file(path: Path) -> TissueImage:
    """Open a JPEG, PNG or the like, or else what OpenSlide reads."""
    from PIL import UnidentifiedImageError

    pixels = _Decoded(path)
    try:
        with pixels.open() as file:
            shape, is_tiff = file.size[::-1], file.format == "TIFF"
    except UnidentifiedImageError:
        return _open_slide(path)
    if is_tiff:  # of another suffix, as scanners give them
        return _open_tiff(path)
    return TissueImage([Level(shape, pixels.read)], repr(path.name), release=pixels.release)


class _Decoded:
    """Pixels of a file that can be decoded only as a whole; that is done when they are needed."""

    def __init__(self, path: Path):
        self._path, self._image = path, None

    def open(self) -> Image.Image:
        """Read the file's header."""
        from PIL import Image

        limit = Image.MAX_IMAGE_PIXELS
        try:
            Image.MAX_IMAGE_PIXELS = None  # slides are larger than what Pillow takes for an attack
            return Image.open(self._path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def release(self) -> None:
        """Forget the pixels until they are needed again."""
        self._image = None

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read pixels, decoding the file if it has to be."""
        from PIL import Image

        if self._image is None:
            try:
                with self.open() as file:
                    file.load()
            except OSError as error:
                raise ValueError(
                    f"{self._path.name!r} is not a whole image ({error}); copy or export it again"
                ) from error
            if file.mode in ("P", "PA"):
                file = file.convert("RGBA" if file.mode == "PA" or "transparency" in file.info else "RGB")
            elif file.mode in ("CMYK", "YCbCr", "LAB", "HSV", "1"):
                file = file.convert("L" if file.mode == "1" else "RGB")
            self._image = file
        right, bottom = min(columns.stop, self._image.width), min(rows.stop, self._image.height)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return np.asarray(self._image.crop((columns.start, rows.start, right, bottom)))


def _open_slide(path: Path) -> TissueImage:
    """Open a whole-slide image by OpenSlide."""
    where = repr(path.name)
    packages = "openslide-python openslide-bin"
    with needs(f"{where} is no TIFF, JPEG or PNG file; formats of slide scanners need pip install {packages}"):
        import openslide
    try:
        slide = openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise ValueError(f"{where} cannot be read as an image ({error}); save it as TIFF, JPEG or PNG") from error

    def level(number: int) -> Level:
        width, height = slide.level_dimensions[number]
        factor = slide.level_downsamples[number]

        def read(rows: slice, columns: slice) -> np.ndarray:
            corner = round(columns.start * factor), round(rows.start * factor)
            extent = min(columns.stop, width) - columns.start, min(rows.stop, height) - rows.start
            return np.asarray(slide.read_region(corner, number, extent))

        return Level((height, width), read)

    microns = slide.properties.get("openslide.mpp-x")
    levels = [level(number) for number in range(slide.level_count)]
    return TissueImage(levels, where, None, None if microns is None else float(microns), close=slide.close)


def _open_element(element: Any, where: str) -> TissueImage:
    """Open an image element of SpatialData, in the coordinate system ``"global"``, or else its first."""
    arrays = [element]
    if hasattr(element, "children"):  # of several scales
        arrays = [next(iter(scale.ds.data_vars.values())) for scale in element.children.values()]
    levels = []
    for array in arrays:
        if not {"y", "x"} <= set(array.dims):
            raise ValueError(f"{where} has dimensions {list_names(array.dims)}; name them 'c', 'y' and 'x'")
        channels = [dim for dim in array.dims if dim in ("c", "channel", "channels", "band")][:1]
        array = array.isel({dim: 0 for dim in array.dims if dim not in ("y", "x", *channels)})
        levels.append(_level(array.transpose(*channels, "y", "x").data, where))
    if "transform" not in arrays[0].attrs:
        return TissueImage(levels, where)
    with needs(f"{where} is an element of SpatialData; pip install spatialdata"):
        from spatialdata.transformations import get_transformation
    systems = get_transformation(element, get_all=True)
    system = "global" if "global" in systems else next(iter(systems))
    to_system = systems[system].to_affine_matrix(("x", "y"), ("x", "y"))
    return TissueImage(levels, where, np.linalg.inv(to_system)[:2])
