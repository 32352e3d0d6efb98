"""Images of every kind: each is read as the colours that it shows, or refused in one sentence."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata as ad
import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from lgdist_scvi import datasets, pp

tifffile = pytest.importorskip("tifffile")


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([120 + x, 250 - 2 * y, (x + y) // 2 * 2], axis=-1).astype(np.uint8)


def spots(*places: tuple[float, float]) -> ad.AnnData:
    return ad.AnnData(sparse.csr_matrix((len(places), 1), dtype=np.float32), obsm={"spatial": np.array(places, float)})


def patch_of(image: Any, adata: ad.AnnData | None = None, **kwargs: Any) -> np.ndarray:
    """Pixels (20:40, 30:50)."""
    kwargs = {"patch_px": 20, "size": 20, "check_tissue": False, "silent": True, **kwargs}
    return pp.image_patches(spots((40, 30)) if adata is None else adata, image, **kwargs)[0]


def palette(path: Path) -> np.ndarray:
    """An indexed TIFF; the colours that it shows."""
    indices = (np.arange(60 * 80).reshape(60, 80) // 7 % 256).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, size=(256, 3))
    tifffile.imwrite(path, indices, photometric="palette", colormap=(colours.T * 257).astype(np.uint16))
    return colours[indices]


def white_is_zero(path: Path) -> np.ndarray:
    tifffile.imwrite(path, 255 - picture()[..., 0], photometric="miniswhite")
    return np.repeat(picture()[..., :1], 3, axis=-1)


def inks(path: Path) -> np.ndarray:
    tifffile.imwrite(path, np.dstack([255 - picture(), np.zeros((60, 80), np.uint8)]), photometric="separated")
    return picture()


def jpeg_of_inks(path: Path) -> np.ndarray:
    Image.fromarray(picture()).convert("CMYK").save(path.with_suffix(".jpg"), quality=98)
    return picture()


def jpeg_in_tiff(path: Path) -> np.ndarray:
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(path, picture(), photometric="rgb", compression="jpeg", compressionargs={"level": 98})
    return picture()


def grey_jpeg(path: Path) -> np.ndarray:
    Image.fromarray(picture()[..., 0]).save(path.with_suffix(".jpg"), quality=98)
    return np.repeat(picture()[..., :1], 3, axis=-1)


def grey_png_of_16_bits(path: Path) -> np.ndarray:
    Image.fromarray(np.minimum(picture()[..., 0].astype(np.uint16) * 257, 65535)).save(path.with_suffix(".png"))
    return np.repeat(picture()[..., :1], 3, axis=-1)


def png_of_a_palette(path: Path) -> np.ndarray:
    image = Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(path.with_suffix(".png"))
    return np.asarray(image.convert("RGB"))


def tiff_of_another_suffix(path: Path) -> np.ndarray:
    tifffile.imwrite(path.with_suffix(".scan"), picture(), photometric="rgb")
    return picture()


@pytest.mark.parametrize(
    "write",
    [
        palette, white_is_zero, inks, jpeg_of_inks, jpeg_in_tiff, grey_jpeg, grey_png_of_16_bits, png_of_a_palette,
        tiff_of_another_suffix,
    ],
)  # fmt: skip
def test_files_show_their_colours(write: Callable[[Path], np.ndarray], tmp_path):
    shown = write(tmp_path / "image.tif")
    (path,) = tmp_path.iterdir()
    np.testing.assert_allclose(
        patch_of(path).astype(int), shown[20:40, 30:50], atol=6 if "jpeg" in write.__name__ else 1
    )


def test_arrays_that_name_their_axes():
    xarray, pixels = pytest.importorskip("xarray"), picture()
    for dims, array in (
        (("c", "y", "x"), np.moveaxis(pixels, -1, 0)),
        (("y", "x", "c"), pixels),
        (("y", "x", "channels"), pixels),
        (("z", "x", "y", "c"), pixels.swapaxes(0, 1)[None]),
    ):
        np.testing.assert_array_equal(patch_of(xarray.DataArray(array, dims=dims)), pixels[20:40, 30:50])
    grey = patch_of(xarray.DataArray(pixels[..., 0], dims=("y", "x")))
    np.testing.assert_array_equal(grey, np.repeat(pixels[20:40, 30:50, :1], 3, axis=-1))
    with pytest.raises(ValueError, match="the image has dimensions 'rows', 'columns', 'c'; name them 'c', 'y' and 'x'"):
        patch_of(xarray.DataArray(pixels, dims=("rows", "columns", "c")))


def test_the_container_of_squidpy():
    squidpy, pixels = pytest.importorskip("squidpy"), picture()
    container = squidpy.im.ImageContainer(pixels, layer="he")
    with pytest.raises(ValueError, match=r"the image is an ImageContainer; pass one of its layers, image\['he'\]"):
        patch_of(container)
    np.testing.assert_array_equal(patch_of(container["he"]), pixels[20:40, 30:50])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((0, 0, 3), np.uint8), ValueError, r"the image has shape \(0, 0, 3\)"),
        (np.zeros((60, 80, 3), complex), ValueError, "the image has values of type complex128"),
        (np.full((60, 80, 3), "a"), ValueError, "the image has values of type <U1"),
        (np.zeros((2, 60, 80, 3)), ValueError, r"the image has shape \(2, 60, 80, 3\)"),
        (Image.fromarray(picture()), ValueError, "the image is of type Image; pass a path, an array"),
        ([[1, 2], [3, 4]], ValueError, "the image is of type list"),
        ("", ValueError, "is a folder; pass the path of a TIFF"),
        (".", ValueError, r"'\.' is a folder; pass the path of a TIFF"),
        ("no/such/file.tif", FileNotFoundError, "there is no image 'no/such/file.tif'"),
        ({}, ValueError, "image is an empty dict"),
    ],
)
def test_what_is_no_image(image, error, message):
    with pytest.raises(error, match=message):
        patch_of(image)


def test_colours_that_are_not_red_green_and_blue_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "lab.tif", picture(), photometric="cielab")
    with pytest.raises(
        ValueError, match="'lab.tif' cannot be read .*stored as CIELAB, not as red, green and blue.; save"
    ):
        patch_of(tmp_path / "lab.tif")


def test_slides_of_which_one_has_no_file(tmp_path):
    adata = datasets.simulated_visium(n_spots=80, n_genes=5, n_samples=2, seed=1, image=True)
    images = {name: library["images"]["hires"] for name, library in adata.uns.pop("spatial").items()}
    Image.fromarray(images["slide_1"]).save(tmp_path / "a.png")
    given = {"slide_1": tmp_path / "a.png", "slide_2": tmp_path / "b.png"}
    with pytest.raises(FileNotFoundError, match="there is no image '.*b.png'"):
        pp.image_features(adata, given, "stain", sample_key="sample", silent=True)
    assert "X_image" not in adata.obsm
    with pytest.raises(ValueError, match="image is None for slides 'slide_2'; leave them out of the dict"):
        pp.image_features(adata, given | {"slide_2": None}, "stain", sample_key="sample", silent=True)


class OpenSlide:
    """As much of openslide-python as is used: an image of two levels, at (x, y) of the finest."""

    level_count, level_downsamples = 2, (1.0, 4.0)
    properties = {"openslide.mpp-x": "0.5"}

    def __init__(self, path: Path):
        if path.read_bytes() != b"slide":
            raise OpenSlideError("not a file that OpenSlide can recognize")
        whole = Image.fromarray(picture(600, 800)).convert("RGBA")
        whole.putalpha(Image.fromarray(np.where(np.arange(800) < 700, 255, 0)[None].repeat(600, 0).astype(np.uint8)))
        self.levels, self.closed, self.read = [whole, whole.resize((200, 150), Image.Resampling.BOX)], False, []
        self.level_dimensions = [level.size for level in self.levels]
        opened.append(self)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        self.read.append(level)
        x, y = (round(value / self.level_downsamples[level]) for value in location)
        return self.levels[level].crop((x, y, x + size[0], y + size[1]))

    def close(self) -> None:
        self.closed = True


class OpenSlideError(Exception):
    pass


opened: list[OpenSlide] = []


def test_formats_of_slide_scanners(tmp_path, monkeypatch):
    stub = ModuleType("openslide")
    stub.OpenSlide, stub.OpenSlideError = OpenSlide, OpenSlideError
    monkeypatch.setitem(sys.modules, "openslide", stub)
    (tmp_path / "a.mrxs").write_bytes(b"slide")
    np.testing.assert_array_equal(patch_of(tmp_path / "a.mrxs"), picture(600, 800)[20:40, 30:50])
    assert opened[-1].closed
    # 40 micrometres are 80 pixels here, which the coarser level has in 20
    coarse = patch_of(tmp_path / "a.mrxs", spots((400, 300)), patch_px=None, patch_um=40)
    np.testing.assert_allclose(coarse[10, 10].astype(int), picture(600, 800)[302, 402], atol=3)
    assert opened[-1].read[-1] == 1
    beyond = patch_of(tmp_path / "a.mrxs", spots((760, 300)))
    assert (beyond == 255).all()  # transparent is white
    (tmp_path / "b.mrxs").write_bytes(b"text")
    with pytest.raises(
        ValueError, match="'b.mrxs' cannot be read as an image .not a file that OpenSlide can recognize"
    ):
        patch_of(tmp_path / "b.mrxs")


@pytest.mark.parametrize("seed", [2, 4, 6, 7])
def test_frames_in_which_all_spots_still_lie_on_tissue(seed):
    """The tissue fills the array: patches of a mirrored frame hold tissue too, but not all of it is under spots."""
    adata = datasets.simulated_visium(n_spots=[300, 150, 80][seed % 3], n_genes=5, seed=seed, image=True)
    library = adata.uns["spatial"]["slide_1"]
    scale = library["scalefactors"]["tissue_hires_scalef"]
    extent = np.array(library["images"]["hires"].shape[1::-1]) / scale

    def said(coordinates: np.ndarray) -> list[str]:
        turned = adata.copy()
        turned.obsm["spatial"] = coordinates
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                pp.image_patches(turned, size=8, silent=True)
            except ValueError as error:
                return [str(error)]
        return [str(one.message) for one in caught if "correct the coordinates" in str(one.message)]

    xy = adata.obsm["spatial"]
    assert not said(xy)
    assert not said(xy + 10)
    for wrong in (xy[:, ::-1], extent - xy, np.column_stack([extent[0] - xy[:, 0], xy[:, 1]])):
        (message,) = said(wrong)
        assert "would with x" in message or "% with x" in message


def test_real_slides_lie_as_they_should(shared_data):
    """Only in the right frame is nothing said."""
    for name in ("human_dlpfc_151673", "human_dlpfc_151675", "mouse_muscle_Vis7B_5dpi", "mouse_embryo_cytassist"):
        stored = ad.read_h5ad(shared_data / f"{name}.h5ad", backed="r")
        adata = ad.AnnData(obs=stored.obs, obsm=dict(stored.obsm), uns=dict(stored.uns))
        library = next(iter(adata.uns["spatial"].values()))
        resolution = max(library["images"])
        extent = np.array(library["images"][resolution].shape[1::-1])
        extent = extent / library["scalefactors"][f"tissue_{resolution}_scalef"]
        x, y = np.asarray(adata.obsm["spatial"], dtype=float).T
        frames = [(x, y), (y, x), (extent[0] - x, y), (x, extent[1] - y), (extent[0] - x, extent[1] - y)]
        said = []
        for frame in frames:
            adata.obsm["spatial"] = np.column_stack(frame)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    pp.image_patches(adata, size=8, silent=True)
                    said.append(any("correct the coordinates" in str(one.message) for one in caught))
                except ValueError as error:
                    said.append("correct the coordinates" in str(error))
        assert said == [False, True, True, True, True], name


def test_a_part_of_the_spots_in_the_right_frame_is_not_warned_of():
    adata = datasets.simulated_visium(n_spots=300, n_genes=5, seed=5, image=True)
    rng = np.random.default_rng(0)
    for share in (0.25, 0.5, 0.75):
        centre = adata.obsm["spatial"][rng.integers(300)]
        away = np.hypot(*(adata.obsm["spatial"] - centre).T)
        part = adata[away <= np.quantile(away, share)].copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            patches = pp.image_patches(part, size=8, patch_px=80, silent=True)
        assert len(patches) == part.n_obs and patches.std(axis=(1, 2, 3)).min() > 0  # tissue, not the glass beside it


_LARGE = """
import resource, sys
import anndata as ad, numpy as np
from scipy import sparse
from lgdist_scvi import pp
import skimage.color, tifffile, tqdm.auto, zarr, PIL.Image  # what is loaded once is no cost of the image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

y, x = np.mgrid[1500:7500:24j, 1500:8500:28j]
adata = ad.AnnData(sparse.csr_matrix((x.size, 1), dtype=np.float32), obsm={"spatial": np.column_stack([x.ravel(), y.ravel()])})
before = peak()
pp.image_features(adata, sys.argv[1], encoder="stain", patch_px=224, batch_size=8, silent=True)
assert np.isfinite(adata.obsm["X_image"]).all()
print(peak() - before)
"""


def test_memory_of_a_large_image(tmp_path):
    """An image of 9,000 x 10,000 pixels, 270 MB as an array, costs less than 500 MB; here, tiles are not kept."""
    shape, edge = (9000, 10_000, 3), 512
    rng = np.random.default_rng(0)
    tissue = (np.array([190, 120, 170]) + rng.integers(-20, 20, (edge, edge, 3))).astype(np.uint8)
    glass = np.full_like(tissue, 244)
    tiles = (
        tissue if 1000 < row < 8000 and 1000 < column < 9000 else glass
        for row in range(0, shape[0], edge)
        for column in range(0, shape[1], edge)
    )
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, tiles, shape=shape, dtype=np.uint8, photometric="rgb", tile=(edge, edge), compression="zlib")
    result = subprocess.run([sys.executable, "-c", _LARGE, str(path)], capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) < 500
