from __future__ import annotations

import numpy as np
import pytest

from lgdist_scvi import pl


def patches(n: int, value: int, size: int = 8) -> np.ndarray:
    return np.full((n, size, size, 3), value, dtype=np.uint8)


def test_one_column_for_each_spot(tmp_path):
    real = np.stack([patches(1, value, 16)[0] for value in range(6)])
    names = [f"domain_{number}" for number in range(6)]
    figure = pl.generated(real, real + 100, real[::-1] + 50, names, 4, save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()
    axes = np.array(figure.axes).reshape(3, 4)
    shown = [[int(ax.images[0].get_array()[0, 0, 0]) for ax in row] for row in axes]
    assert shown[1] == [value + 100 for value in shown[0]] and shown[2] == [55 - value for value in shown[0]]
    assert [ax.get_title() for ax in axes[0]] == [f"domain_{value}" for value in shown[0]]
    assert [row[0].get_ylabel() for row in axes] == ["real", "generated", "generated for\nanother spot"]
    # the same spots for the same seed, all of them if there are not more
    assert len(pl.generated(real, patches(6, 1)).axes) == 12


def test_patches_must_be_as_many():
    with pytest.raises(ValueError, match="as many"):
        pl.generated(patches(3, 0), patches(2, 0))
    with pytest.raises(ValueError, match="generated must hold square patches"):
        pl.generated(patches(3, 0), np.zeros((3, 4)))
