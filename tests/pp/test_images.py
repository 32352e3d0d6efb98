from __future__ import annotations

import sys
import warnings

import anndata as ad
import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from lgdist_scvi import datasets, pp
from lgdist_scvi.pp._image_source import Level, TissueImage
from lgdist_scvi.pp._tissue import tissue_mask


def picture(height: int = 300, width: int = 400) -> np.ndarray:
    """Colours that tell where each pixel is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x // 7 + y // 3) % 256], axis=-1).astype(np.uint8)


def spots(*places: tuple[float, float]) -> ad.AnnData:
    return ad.AnnData(sparse.csr_matrix((len(places), 1), dtype=np.float32), obsm={"spatial": np.array(places, float)})


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=120, n_genes=20, seed=3, image=True)


@pytest.fixture(scope="module")
def slides() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=160, n_genes=20, n_samples=2, seed=1, image=True)


def hires(adata: ad.AnnData, slide: str = "slide_1") -> tuple[np.ndarray, float]:
    library = adata.uns["spatial"][slide]
    return library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]


def saved(kind: str, pixels: np.ndarray, folder):
    """The same picture in another form."""
    import tifffile

    path = folder / f"{kind.replace(' ', '_')}.tif"
    if kind == "array":
        return pixels
    if kind == "channels first":
        return np.moveaxis(pixels, -1, 0)
    if kind == "opaque":
        return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=-1)
    if kind == "16 bit":
        return pixels.astype(np.uint16) * 257
    if kind == "float":
        return pixels.astype(np.float32) / 255
    if kind == "dask":
        import dask.array

        return dask.array.from_array(pixels, chunks=(64, 100, 3))
    if kind == "zarr":
        import zarr

        stored = zarr.create_array(folder / "image.zarr", shape=pixels.shape, dtype=pixels.dtype, chunks=(64, 100, 3))
        stored[:] = pixels
        return stored
    if kind == "png":
        Image.fromarray(pixels).save(folder / "image.png")
        return str(folder / "image.png")
    if kind == "tiff":
        tifffile.imwrite(path, pixels, photometric="rgb")
    if kind == "tiff in strips":
        tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16, compression="zlib")
    if kind == "tiff of planes":
        tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    if kind == "tiled pyramid":
        with tifffile.TiffWriter(path) as file:
            options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
            file.write(pixels, subifds=1, **options)
            file.write(pixels[::2, ::2], subfiletype=1, **options)
    return path


FORMS = ["array", "channels first", "opaque", "16 bit", "float", "dask", "zarr", "png", "tiff", "tiff in strips"]


@pytest.mark.parametrize("kind", [*FORMS, "tiff of planes", "tiled pyramid"])
def test_patches_hold_the_pixels_around_each_spot(kind, tmp_path):
    pixels = picture()
    adata = spots((100, 50), (31.2, 200.7), (350, 270))
    patches = pp.image_patches(adata, saved(kind, pixels, tmp_path), patch_px=40, size=40, check_tissue=False)
    assert patches.dtype == np.uint8 and patches.shape == (3, 40, 40, 3)
    for patch, (x, y) in zip(patches, [(80, 30), (11, 181), (330, 250)], strict=True):
        np.testing.assert_array_equal(patch, pixels[y : y + 40, x : x + 40])


def test_grey_transparent_and_other_depths():
    adata = spots((20, 20))
    grey = np.full((40, 40), 90, dtype=np.uint8)
    cases = {
        "grey": (grey, 90),
        "one channel": (grey[..., None], 90),
        "transparent": (np.dstack([grey, grey, grey, np.zeros_like(grey)]), 255),
        "12 bit": (np.where(np.eye(40, dtype=bool), 4000, 2048).astype(np.uint16), 128),
        "8 bits stored in 16": (grey.astype(np.uint16), 90),
    }
    for name, (image, value) in cases.items():
        patch = pp.image_patches(adata, image, patch_px=16, size=16, check_tissue=False)[0]
        assert patch.shape == (16, 16, 3) and abs(int(patch[0, 5, 0]) - value) <= 1, name
    for bad in (np.full((40, 40), -1.0), np.full((40, 40), np.nan), np.full((40, 40), 1e6)):
        with pytest.raises(ValueError, match="give colours as whole numbers from 0 to 255"):
            pp.image_patches(adata, bad, patch_px=16, check_tissue=False)


def test_beyond_the_image_is_white_and_said_once():
    adata = spots((5, 100), (200, 150), (398, 299), (900, 100))
    with pytest.warns(UserWarning, match="3 of 4 spots reach beyond the image") as said:
        patches = pp.image_patches(adata, picture(), patch_px=40, size=40, check_tissue=False, key_added="patches")
    assert len(said) == 1
    np.testing.assert_array_equal(patches[0, :, 15:], picture()[80:120, :25])
    assert (patches[0, :, :15] == 255).all() and (patches[3] == 255).all()
    assert adata.uns["patches"]["off_image"] == 0.75


def test_resized_patches_cover_the_same_tissue():
    adata, smooth = spots((200, 150)), np.full((300, 400, 3), 255, dtype=np.uint8)
    smooth[130:170, 180:200] = 0  # the left half of the patch
    patch = pp.image_patches(adata, smooth, patch_px=40, size=20, check_tissue=False)[0, ..., 0]
    assert (patch[:, :9] < 10).all() and (patch[:, 11:] > 245).all()
    scaled = adata.copy()
    scaled.obsm["spatial"] /= 0.25  # the image has a quarter of the resolution that coordinates have
    scaled.uns["spatial"] = {"s": {"images": {"hires": smooth}, "scalefactors": {"tissue_hires_scalef": 0.25}}}
    for image, key in ((None, None), (None, "hires"), (smooth, "hires")):
        again = pp.image_patches(scaled, image, patch_px=160, size=20, image_res_key=key, check_tissue=False)[0, ..., 0]
        np.testing.assert_array_equal(again, patch)


def test_coordinate_systems_of_spatialdata():
    pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine

    pixels = picture()
    matrix = [[2, 0, 50], [0, 2, -30], [0, 0, 1]]  # pixels to coordinates
    to_global = {"global": Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))}
    channels = np.moveaxis(pixels, -1, 0)
    adata = spots((2 * 100 + 50, 2 * 60 - 30))
    for factors in (None, [2]):
        element = Image2DModel.parse(
            channels, transformations=to_global, c_coords=["r", "g", "b"], scale_factors=factors
        )
        patch = pp.image_patches(adata, element, patch_px=80, size=40, check_tissue=False)[0]
        np.testing.assert_array_equal(patch, pixels[40:80, 80:120])

    from spatialdata import SpatialData

    with pytest.raises(ValueError, match=r"pass one of its images, sdata\[name\] with name of 'he'"):
        pp.image_patches(adata, SpatialData(images={"he": element}))


def recorded(shape: tuple[int, int], chunk: tuple[int, int] = (1, 1)) -> tuple[Level, list[tuple[int, int]]]:
    reads = []

    def read(rows: slice, columns: slice) -> np.ndarray:
        window = tuple(min(part.stop, n) - part.start for part, n in zip((rows, columns), shape, strict=True))
        reads.append(window)
        return np.zeros((*window, 3), dtype=np.uint8)

    return Level(shape, read, chunk), reads


def test_large_images_are_read_in_blocks():
    rng = np.random.default_rng(0)
    for chunk in ((1, 1), (256, 256), (1, 20_000)):
        level, reads = recorded((20_000, 20_000), chunk)
        image = TissueImage([level], "image")
        given = [row for row, _ in image.patches(rng.uniform(2000, 9000, (300, 2)), 224, 224)]
        areas = [height * width for height, width in reads]
        assert sorted(given) == list(range(300))
        assert max(areas) < 3e7 and sum(areas) < 2 * 9000 * 20_000
        reads.clear()
        assert max(image.thumbnail.shape) < 2400
        assert max(height * width for height, width in reads) < 3e7


def test_the_level_of_a_pyramid_that_is_fine_enough_is_read():
    levels, reads = zip(*(recorded((n, n)) for n in (8000, 2000, 500)), strict=True)
    list(TissueImage(list(levels), "image").patches(np.full((1, 2), 4000.0), 400, 100))
    assert [len(of_level) for of_level in reads] == [0, 1, 0]
    assert reads[1][0] == (100, 100)


def test_edge_of_patches(tissue):
    def edge(adata, **given):
        pp.image_features(adata, encoder="stain", silent=True, **given)
        record = adata.uns["X_image"]
        return record["patch_px"].item(), record["patch_um"].item()

    adata = tissue.copy()
    assert edge(adata) == pytest.approx((112, 112))  # a hexagonal lattice has a pitch of 100 um, here 100 pixels
    assert edge(adata, patch_um=80) == pytest.approx((80, 80))
    assert edge(adata, patch_um=80, microns_per_pixel=0.5) == pytest.approx((160, 80))
    assert edge(adata, patch_px=150) == pytest.approx((150, 150))
    adata.uns["spatial"]["slide_1"]["scalefactors"]["microns_per_pixel"] = 2.0
    assert edge(adata, patch_um=80) == pytest.approx((40, 80))
    assert edge(adata) == pytest.approx((100, 200))  # the pitch, which is more than 112 um
    alone = spots((100, 100), (220, 130))
    patches = pp.image_patches(alone, picture(), check_tissue=False)
    np.testing.assert_array_equal(patches[1], picture()[18:242, 108:332])
    for given, message in (
        ({"patch_um": 50}, "patch_um needs the micrometres of a pixel"),
        ({"patch_um": 50, "patch_px": 20}, "pass one of them"),
        ({"patch_px": -1}, "patch_px must be positive, got -1"),
        ({"patch_px": 1000}, r"a patch of 1,000 pixels is larger than the image \(400 x 300 pixels\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pp.image_patches(alone, picture(), check_tissue=False, **given)
    with pytest.warns(UserWarning, match="a patch is only 6.0 pixels of the image wide"):
        pp.image_patches(alone, picture(), patch_px=6, check_tissue=False)


def test_slides_have_images_of_their_own(slides):
    adata = slides.copy()
    images = {name: hires(adata, name)[0] for name in adata.uns["spatial"]}
    pp.image_features(adata, encoder="stain", sample_key="sample", silent=True)
    own = adata.obsm["X_image"].copy()
    assert own.dtype == np.float32 and np.isfinite(own).all()
    assert list(adata.uns["X_image"]["slides"]) == ["slide_1", "slide_2"]
    pp.image_features(adata, images, "stain", image_res_key="hires", library_key="sample", silent=True)
    np.testing.assert_array_equal(adata.obsm["X_image"], own)
    # order of spots does not matter
    turned = adata[::-1].copy()
    pp.image_features(turned, encoder="stain", sample_key="sample", silent=True)
    np.testing.assert_array_equal(turned.obsm["X_image"][::-1], own)

    del images["slide_2"]
    given = {"encoder": "stain", "image_res_key": "hires", "sample_key": "sample", "silent": True}
    with pytest.warns(UserWarning, match="80 of 160 spots have no image; their features are NaN"):
        pp.image_features(adata, images, **given)
    first = (adata.obs["sample"] == "slide_1").to_numpy()
    np.testing.assert_array_equal(adata.obsm["X_image"][first], own[first])
    assert np.isnan(adata.obsm["X_image"][~first]).all()
    with pytest.raises(ValueError, match="80 of 160 spots have no image; pass one for every slide"):
        pp.image_patches(adata, images, image_res_key="hires", sample_key="sample")


def test_written_and_read(slides, tmp_path):
    adata = slides[:90].copy()
    pp.image_features(adata, encoder="stain", sample_key="sample", augment="stack", silent=True)
    pp.image_patches(adata, sample_key="sample", size=16, key_added="patches", silent=True)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert adata.obsm["X_image"].shape == (90, 8, 59)
    for key in ("X_image", "patches"):
        np.testing.assert_array_equal(read.obsm[key], adata.obsm[key])
    assert read.uns["X_image"]["encoder"] == "stain" and read.uns["X_image"]["n_features"] == 59
    np.testing.assert_array_equal(read.uns["X_image"]["on_tissue"], [1, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, y, width, height: (y, x), "with x and y swapped"),
        (lambda x, y, width, height: (width - x, y), r"with x mirrored \(width - x\)"),
        (lambda x, y, width, height: (x, height - y), r"with y mirrored \(height - y\)"),
        (lambda x, y, width, height: (2 * x, 2 * y), r"with coordinates multiplied by tissue_hires_scalef \(0.5\)"),
    ],
)
def test_spots_beside_the_tissue_are_refused(wrong, message, slides):
    image, scale = hires(slides)
    assert scale == 1
    xy = slides.obsm["spatial"][:80]
    lower = np.flatnonzero(xy[:, 1] > np.median(xy[:, 1]))
    adata, top = slides[lower].copy(), int(xy[lower, 1].min()) - 60
    # half of a slide in the corner of a large glass: no symmetry hides the mistake
    glass = np.full((2 * image.shape[0], 3 * image.shape[1], 3), 244, dtype=np.uint8)
    glass[: image.shape[0] - top, : image.shape[1]] = image[top:]
    height, width = glass.shape[:2]
    half = np.asarray(Image.fromarray(glass).resize((width // 2, height // 2)))
    adata.uns["spatial"] = {"a": {"images": {"hires": half}, "scalefactors": {"tissue_hires_scalef": 0.5}}}
    x, y = (xy[lower] - [0, top]).T
    adata.obsm["spatial"] = np.column_stack([x, y])
    pp.image_features(adata, encoder="stain", silent=True, key_added="right")
    assert adata.uns["right"]["on_tissue"] == 1

    adata.obsm["spatial"] = np.column_stack(wrong(x, y, width, height))
    with pytest.raises(
        ValueError, match=rf"only \d+% of the spots lie on tissue in the hires image, but 100% would {message}"
    ):
        pp.image_features(adata, encoder="stain", silent=True)
    assert "X_image" not in adata.obsm and "X_image" not in adata.uns
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*reach beyond the image")
        pp.image_features(adata, encoder="stain", check_tissue=False, silent=True)
    assert np.isnan(adata.uns["X_image"]["on_tissue"]).all()


def test_full_resolution_coordinates_with_a_small_image_are_refused():
    adata = datasets.simulated_visium(n_spots=900, n_genes=5, image=True)
    image, scale = hires(adata)
    small = np.asarray(Image.fromarray(image).resize((300, 240)))
    del adata.uns["spatial"]
    message = (
        r"lie on tissue in the image: it is of another slide or scale \(300 x 240 pixels, spots reach .*image_res_key"
    )
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")
        pp.image_features(adata, small, "stain", silent=True)


def test_images_of_slides_that_were_exchanged_are_refused(slides):
    adata = slides.copy()
    second = (adata.obs["sample"] == "slide_2").to_numpy()
    adata.obsm["spatial"][second] += [2500, 0]
    images = {}
    for name, shift in (("slide_1", 0), ("slide_2", 2500)):
        image, scale = hires(adata, name)
        assert scale == 1
        images[name] = np.pad(image, ((0, 0), (shift, 2500 - shift), (0, 0)), constant_values=244)
    pp.image_features(adata, images, "stain", sample_key="sample", silent=True)
    exchanged = {"slide_1": images["slide_2"], "slide_2": images["slide_1"]}
    with pytest.raises(ValueError, match="of slide 'slide_1' lie on tissue .*, but .* would"):
        pp.image_features(adata, exchanged, "stain", sample_key="sample", silent=True)


def test_glass_is_not_tissue():
    rng = np.random.default_rng(0)
    image = np.full((200, 300, 3), 240.0)
    image[:, :] -= (
        np.array([0, 25, 8]) * np.clip(1 - np.hypot(*np.mgrid[-100:100, -150:150]) / 140, 0, 1)[..., None]
    )  # eosin
    image[60:140, 100:200] = [180, 120, 170]
    image[:8] = image[:, :8] = 20  # a black frame
    truth = np.zeros((200, 300), dtype=bool)
    truth[60:140, 100:200] = True
    image = (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
    assert (tissue_mask(image) == truth).mean() > 0.99
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)[8:, 8:]
    assert (tissue_mask(grey) == truth[8:, 8:]).mean() > 0.97
    assert not tissue_mask(image[10:50, 10:]).any()
    assert tissue_mask(image[65:135, 105:195]).all()


def test_tiles_of_the_tissue(tissue, tmp_path):
    image, scale = hires(tissue)
    kwargs = {"size": 32, "silent": True, "patch_um": 100}
    tiles = pp.image_patches(tissue, tissue=True, min_tissue=0.9, **kwargs)
    share = np.mean([tissue_mask(image).mean()])
    grid = (image.shape[0] / scale // 100) * (image.shape[1] / scale // 100)
    assert 0.5 * share * grid < len(tiles) <= share * grid * 1.1
    assert tiles[..., 1].mean(axis=(1, 2)).max() < 225  # none of glass
    many = pp.image_patches(tissue, tissue=True, min_tissue=0.9, overlap=0.5, **kwargs)
    assert 3 * len(tiles) < len(many) < 6 * len(tiles)
    path = pp.image_patches(tissue, tissue=True, min_tissue=0.9, store=tmp_path / "tiles.zarr", **kwargs)
    import zarr

    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], tiles)
    with pytest.raises(FileExistsError, match="exists; remove it or name another store"):
        pp.image_patches(tissue, store=path, **kwargs)
    with pytest.raises(ValueError, match="no tile holds 100% of tissue"):
        pp.image_patches(tissue, tissue=True, min_tissue=1.0, patch_px=1000, check_tissue=False)


def test_nothing_half_written(tissue, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lgdist_scvi.pp._patch_store.PatchStore.write", fail)
    with pytest.raises(KeyboardInterrupt):
        pp.image_patches(tissue, store=tmp_path / "patches.zarr", silent=True)
    assert not list(tmp_path.iterdir())


def test_chosen_spots(slides):
    everything = pp.image_patches(slides, sample_key="sample", size=16, silent=True)
    rows = [150, 3, 90, 3]
    some = pp.image_patches(slides, sample_key="sample", size=16, indices=rows, silent=True)
    np.testing.assert_array_equal(some, everything[rows])
    for bad in ([-1], [160], [0.5], []):
        with pytest.raises(ValueError, match="indices must be rows of adata, whole numbers from 0 to 159"):
            pp.image_patches(slides, sample_key="sample", indices=bad)


def test_what_cannot_be_an_image(tissue, tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*\0nonsense")
    (tmp_path / "text.svg").write_text("<svg/>")
    Image.fromarray(picture()).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for image, kind, message in (
        (tmp_path / "none.tif", FileNotFoundError, "there is no image '.*none.tif'"),
        (tmp_path / "broken.tif", ValueError, "'broken.tif' cannot be read as an image"),
        (tmp_path / "half.png", ValueError, "'half.png' is not a whole image"),
        (np.zeros((20, 30, 7)), ValueError, r"the image has shape \(20, 30, 7\); an image is \(height, width\)"),
        (np.zeros((0, 30, 3)), ValueError, "has shape"),
        (3, ValueError, "the image is of type int; pass a path, an array"),
    ):
        with pytest.raises(kind, match=message):
            pp.image_features(tissue, image, "stain", patch_px=20)
    if "openslide" not in sys.modules:
        with pytest.raises(
            ImportError, match="'text.svg' is no TIFF, JPEG or PNG file; .*pip install openslide-python"
        ):
            pp.image_features(tissue, tmp_path / "text.svg", "stain")


def test_what_does_not_fit_together(tissue, slides):
    without = tissue.copy()
    del without.uns["spatial"]
    image = hires(tissue)[0]
    nothing = tissue.copy()
    nothing.uns["spatial"] = {"a": {"images": {}, "scalefactors": {}}}
    unscaled = tissue.copy()
    unscaled.uns["spatial"]["slide_1"]["scalefactors"] = {}
    for adata, given, kind, message in (
        (without, {}, KeyError, r"there is no image in adata.uns\['spatial'\]; pass image="),
        (tissue[:0].copy(), {}, ValueError, "adata has 0 spots"),
        (nothing, {}, KeyError, "'hires' not found in the images"),
        (unscaled, {}, KeyError, "'hires' not found in the scale factors"),
        (
            tissue,
            {"image_res_key": "medres"},
            KeyError,
            "'medres' not found in the images.*available: 'hires', 'lowres'",
        ),
        (tissue, {"image": image, "spatial_key": "none"}, KeyError, "'none' not found in adata.obsm"),
        (
            slides,
            {"image": {"a": image, "b": image}, "sample_key": "sample"},
            KeyError,
            "none of the images .*named like a slide",
        ),
        (slides, {"image": image, "sample_key": "sample"}, ValueError, "one image was passed for 2 slides"),
        (slides, {"sample_key": "sample", "library_key": "domain"}, ValueError, "two words for the same"),
        (slides, {"sample_key": "section"}, KeyError, "'section' not found in adata.obs"),
    ):
        with pytest.raises(kind, match=message):
            pp.image_features(adata, encoder="stain", **given)
    unnamed = slides.copy()
    unnamed.obs = unnamed.obs[["library_size"]].copy()
    unnamed.obsm["spatial"][80:] += [3000, 0]
    with pytest.raises(ValueError, match="there are 2 images .'slide_1', 'slide_2'.; pass sample_key="):
        pp.image_features(unnamed, encoder="stain")


def test_slides_are_found(slides):
    adata = slides.copy()
    with pytest.warns(UserWarning, match=r"adata.obs\['sample'\] names 2 slides and is used"):
        pp.image_features(adata, encoder="stain", silent=True)
    found = adata.obsm["X_image"].copy()
    pp.image_features(adata, encoder="stain", sample_key="sample", silent=True)
    np.testing.assert_array_equal(adata.obsm["X_image"], found)


def test_too_many_arguments():
    adata = spots((100, 100))
    for given, message in (
        ({"overlap": 1.0}, "overlap must be from 0 to below 1"),
        ({"size": 0}, "size must be a whole number of at least 1"),
        ({"tissue": True, "key_added": "x"}, "key_added stores patches of spots"),
        ({"tissue": True, "indices": [0]}, "leave out indices"),
    ):
        with pytest.raises(ValueError, match=message):
            pp.image_patches(adata, picture(), patch_px=20, **given)
