from __future__ import annotations

import numpy as np
import pytest

from lgdist_scvi import metrics


def cloud(n: int, shift: float = 0.0, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Features of images, (n, 8)."""
    return np.random.default_rng(seed).normal(shift, spread, size=(n, 8))


# ---- distances


def test_distances_order_what_is_near_and_far():
    others = {"farther": cloud(150, 2.0, 4)}
    table = metrics.image_distance(
        cloud(150, seed=1), cloud(150, 0.5, 2), cloud(400), cloud(150, 1.0, 3), others=others
    )
    assert list(table.index) == ["generated", "floor", "permuted", "farther"] and list(table["n"]) == [
        150,
        400,
        150,
        150,
    ]
    for score in ("kid", "frechet"):
        assert (np.diff(table.loc[["floor", "generated", "permuted", "farther"], score]) > 0).all()
        excess, error = table[f"{score}_excess"], table[f"{score}_excess_se"]
        assert excess["generated"] == error["generated"] == 0
        np.testing.assert_allclose(excess, table[score] - table.loc["generated", score])
        assert excess["farther"] > 2 * error["farther"] and excess["floor"] < -2 * error["floor"]
    # of the same distribution: nothing beyond the error, and the unbiased estimate lies about 0
    assert abs(table.loc["floor", "kid"]) < 3 * table.loc["floor", "kid_se"]


def test_kid_is_the_mean_over_pairs():
    x, y = cloud(30, seed=1), cloud(25, 0.5, 2)
    found = metrics.image_distance(y, x, cloud(40)).loc["generated", "kid"]

    def mean(a, b, same):
        pairs = [(p @ q / 8 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j]
        return np.mean(pairs)

    assert found == pytest.approx(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))


def test_the_standard_error_is_that_of_repetitions():
    tables = [
        metrics.image_distance(cloud(100, seed=10 * i + 1), cloud(100, 0.5, 10 * i + 2), cloud(100, seed=10 * i + 3))
        for i in range(60)
    ]
    for score in ("kid", "frechet"):
        values = [table.loc["generated", score] for table in tables]
        errors = [table.loc["generated", f"{score}_se"] for table in tables]
        assert 0.7 < np.sqrt(np.mean(np.square(errors))) / np.std(values) < 1.4


def test_the_frechet_distance_of_gaussians():
    x, y = cloud(20000, 0.0, 1), cloud(20000, 1.0, 2, spread=2.0)
    # 8 (mean 1 apart)^2 + 8 (2 - 1)^2
    assert metrics.image_distance(y[:3000], x[:3000], x[:3000]).loc["generated", "frechet"] == pytest.approx(
        16, rel=0.1
    )


def test_patches_are_encoded_at_one_size():
    from PIL import Image

    rng = np.random.default_rng(0)
    fine = rng.integers(0, 255, size=(20, 32, 32, 3), dtype=np.uint8)
    coarse = np.stack([np.asarray(Image.fromarray(one).resize((8, 8), Image.Resampling.BICUBIC)) for one in fine])
    table = metrics.image_distance(fine, coarse, coarse[::-1], encoder="stain")
    # a finer copy of the same patches is the same
    assert table.loc["generated", "frechet"] == pytest.approx(0, abs=1e-4)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="generated holds 19 patches; a distance needs at least 20"):
        metrics.image_distance(cloud(20), cloud(19), cloud(20))
    with pytest.raises(ValueError, match="patches everywhere or features everywhere"):
        metrics.image_distance(cloud(20), np.zeros((20, 8, 8, 3), np.uint8), cloud(20))
    with pytest.raises(ValueError, match="floor holds NaN"):
        metrics.image_distance(cloud(20), cloud(20), np.full((20, 8), np.nan))


# ---- copies


def test_copies_are_found():
    training, real = cloud(300), cloud(100, seed=1)
    honest = metrics.image_copying(cloud(100, seed=2), real, training)
    assert honest["share_close"] < 0.15 and honest["p_value"] > 0.01 and honest["ratio"] == pytest.approx(1, abs=0.2)
    copies = training[:100] + cloud(100, seed=3, spread=0.01)
    caught = metrics.image_copying(copies, real, training)
    assert caught["share_close"] == 1 and caught["p_value"] < 1e-6 and caught["ratio"] < 0.1
    # a few among many
    some = np.concatenate([copies[:30], cloud(70, seed=2)])
    assert metrics.image_copying(some, real, training)["share_close"] > 0.25
    with pytest.raises(ValueError, match="1 of 100 real patches are training patches"):
        metrics.image_copying(copies, np.concatenate([real[1:], training[:1]]), training)


# ---- composition


def painted(n_nuclei: int, size: int = 64, radius: float = 2.3) -> np.ndarray:
    """A patch of pink stroma with blue discs on a grid."""
    patch = np.full((size, size, 3), (235, 180, 215), dtype=np.uint8)
    y, x = np.mgrid[:size, :size]
    for number in range(n_nuclei):
        cy, cx = 8 + 12 * (number // 5), 8 + 12 * (number % 5)
        patch[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = (90, 60, 140)
    return patch


def test_nuclei_are_counted_and_stains_weighed():
    numbers = [0, 1, 7, 25]
    table = metrics.patch_composition(np.stack([painted(n) for n in numbers]), patch_um=112.0)
    assert list(table["nuclei"]) == numbers
    assert (np.diff(table["haematoxylin"]) > 0).all()
    redder = painted(0)
    redder[..., 1] -= 40
    assert metrics.patch_composition(redder[None])["eosin"][0] > table["eosin"][0]


def test_patches_that_are_too_coarse_are_refused():
    with pytest.raises(ValueError, match="pixels wide"):
        metrics.patch_composition(np.zeros((1, 8, 8, 3), np.uint8), patch_um=112.0)
    with pytest.raises(ValueError, match="square patches"):
        metrics.patch_composition(np.zeros((1, 8, 9, 3), np.uint8))
