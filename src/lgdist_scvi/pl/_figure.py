"""Figures and axes, made the same way everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lgdist_scvi._checks import is_synthetic

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "0.45"


def new_figure(
    n_rows: int = 1, n_columns: int = 1, figsize: tuple[float, float] | None = None, **kwargs: Any
) -> tuple[Figure, Any]:
    """Make a figure with constrained layout and its axes, an array (n_rows, n_columns).

    It is taken from pyplot's list at once: a notebook shows what a cell returns, and shows it once.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(n_rows, n_columns, figsize=figsize, layout="constrained", squeeze=False, **kwargs)
    plt.close(figure)
    return figure, axes


def figure_of(ax: Axes | None, figsize: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return the figure of the caller's axes, or a new one."""
    if ax is not None:
        return ax.get_figure(root=True), ax
    figure, axes = new_figure(figsize=figsize)
    return figure, axes[0, 0]


def tidy(ax: Axes) -> None:
    """Take away the lines that carry no information."""
    ax.spines[["top", "right"]].set_visible(False)


def mark_synthetic(figure: Figure, adata: AnnData) -> None:
    """Say under a figure how many of the spots are synthetic, if any are."""
    if n := int(is_synthetic(adata).sum()):
        figure.supxlabel(f"{n:,} of {adata.n_obs:,} spots are synthetic and measure nothing", fontsize=9)
