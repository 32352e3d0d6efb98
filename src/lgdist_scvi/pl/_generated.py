"""Real patches beside generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from lgdist_scvi._checks import check_positive_int
from lgdist_scvi._patches import check_patches
from lgdist_scvi.pl._figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def generated(
    real: np.ndarray,
    generated: np.ndarray,
    permuted: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    n_patches: int = 10,
    *,
    seed: int = 0,
    panel_size: float = 1.1,
    save: str | PathLike[str] | None = None,
    dpi: float = 150,
) -> Figure:
    """Show real patches, those generated for the expression of the same spots, and those generated for that of other spots.

    Parameters
    ----------
    real, generated, permuted
        Patches of the same spots, uint8 (n, size, size, 3); sizes may differ.
    names
        A title for each spot, (n,), such as its domain.
    n_patches
        Number of spots to show, drawn at random.
    seed
        Of the draw.
    panel_size
        Edge of a patch in inches.
    save
        File to write the figure to.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure: one column for each spot, generated patches marked as such.

    Raises
    ------
    ValueError
        If there are no patches, or not as many of each kind.

    Examples
    --------
    >>> pl.generated(adata.obsm["patches"], model.generate(adata))  # doctest: +SKIP
    """
    check_positive_int(n_patches, "n_patches")
    rows = {"real": real, "generated": generated}
    if permuted is not None:
        rows["generated for\nanother spot"] = permuted
    for name, patches in rows.items():
        check_patches(patches, name.replace("\n", " "))
    lengths = {len(patches) for patches in rows.values()} | (set() if names is None else {len(names)})
    if len(lengths) > 1 or not lengths - {0}:
        raise ValueError(f"patches and names must be as many, at least one, got {sorted(lengths)}")
    n = lengths.pop()
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:n_patches])
    size = (panel_size * len(chosen) + 0.8, panel_size * len(rows) + 0.3)
    figure, axes = new_figure(len(rows), len(chosen), size)
    for its_axes, (name, patches) in zip(axes, rows.items(), strict=True):
        for ax, spot in zip(its_axes, chosen, strict=True):
            ax.imshow(patches[spot])
            ax.set(xticks=[], yticks=[])
        its_axes[0].set_ylabel(name, fontsize=9)
    if names is not None:
        for ax, spot in zip(axes[0], chosen, strict=True):
            ax.set_title(str(names[spot]), fontsize=8, pad=2)
    if save is not None:
        figure.savefig(save, dpi=dpi)
    return figure
