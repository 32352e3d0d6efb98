"""Panels of genes on the tissue: one row for each gene on each slide, with shared colours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from lgdist_scvi._anndata import get_obs, in_memory
from lgdist_scvi._checks import did_you_mean, list_names
from lgdist_scvi.pl._figure import figure_of, new_figure

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from lgdist_scvi.pl._canvas import Canvas

TISSUE = "tissue"
STD_MAP = "plasma"
_QUANTILE = 0.99  # of the values, at the ends of the colour scales: single spots do not set it
_MOST_SLIDES = 6  # of slides that were not named


@dataclass
class Scale:
    """Columns of panels that share their colours, gene by gene.

    Parameters
    ----------
    columns
        Title of each column, and its values, (n_spots,) for each row of panels.
    cmap
        Colours.
    label
        What the colour bar says.
    from_zero
        Whether colours begin at 0.
    """

    columns: dict[str, list[np.ndarray]]
    cmap: str | Colormap
    label: str
    from_zero: bool = True

    def ends(self, rows: slice) -> tuple[float, float]:
        """Ends of the colour scale of some rows: quantiles of the values that are there."""
        values = np.concatenate([block for blocks in self.columns.values() for block in blocks[rows]])
        finite = values[np.isfinite(values)]
        if not len(finite):
            return 0.0, 1.0
        low, high = np.quantile(finite, [1 - _QUANTILE, _QUANTILE])
        if high <= 0:  # expressed in fewer spots than the scale leaves out
            high = finite.max()
        low, high = float(low), float(high) if high > low else float(low) + 1.0
        return (0.0, high) if self.from_zero else (low, high)


def named_genes(adata: AnnData, genes: str | Sequence[str]) -> list[str]:
    """Names of genes, checked.

    Raises
    ------
    KeyError
        If there is no such gene.
    ValueError
        If none is named, or a name is that of several genes.
    """
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is empty; pass names, or None to have some chosen")
    if unknown := [name for name in names if name not in adata.var_names]:
        raise KeyError(
            f"{len(unknown):,} of {len(names):,} genes are not in adata.var_names: {list_names(unknown)}; "
            f"{did_you_mean(unknown, adata.var_names)}pass names from adata.var_names"
        )
    if adata.var_names.isin(names).sum() > len(set(names)):
        raise ValueError(
            "names of these genes occur more than once in adata.var_names; call adata.var_names_make_unique()"
        )
    return names


def named_slides(
    adata: AnnData, sample_key: str | None, sample: str | Sequence[str] | None
) -> dict[str | None, np.ndarray]:
    """Spots of each slide to show: those named, or the first few.

    Raises
    ------
    KeyError
        If slides are named without their column, or there is no such slide.
    """
    if sample_key is None:
        if sample is not None:
            raise KeyError(f"sample={sample!r} needs sample_key, the column of adata.obs that names slides")
        return {None: np.arange(adata.n_obs)}
    labels = get_obs(adata)[sample_key].astype(str)
    available = list(labels.unique())
    if sample is None:
        chosen = available[:_MOST_SLIDES]
        if len(available) > _MOST_SLIDES:
            warnings.warn(
                f"the first {_MOST_SLIDES} of {len(available):,} slides are shown; name others with sample=[...]",
                UserWarning,
                stacklevel=3,
            )
    else:
        chosen = [str(name) for name in (sample if isinstance(sample, list | tuple | np.ndarray) else [sample])]
    unknown = [name for name in chosen if name not in available]
    if unknown or not chosen:
        raise KeyError(
            f"no spot of adata.obs[{sample_key!r}] is {list_names(unknown) or 'named'}; available: "
            f"{list_names(available, 20)}"
        )
    return {name: np.flatnonzero(labels.to_numpy() == name) for name in chosen}


def column(matrix: Any, spots: np.ndarray, gene: int) -> np.ndarray:
    """Values of one gene in some spots, (n_spots,)."""
    block = in_memory(matrix[:, [gene]])
    return (block.toarray() if sparse.issparse(block) else block)[spots, 0]


def draw_panels(
    rows: Sequence[tuple[str, str | None]],
    canvases: dict[str | None, Canvas],
    scales: Sequence[Scale],
    *,
    notes: dict[str, str] | None = None,
    tissue: bool = False,
    img_alpha: float = 0.0,
    ax: Axes | None = None,
    panel_size: float = 3.0,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw a figure of panels.

    Parameters
    ----------
    rows
        Gene and slide of each row: gene by gene, on all slides.
    canvases
        Each slide, ready to be drawn on.
    scales
        What is drawn, from left to right.
    notes
        What to say of genes under their names.
    tissue
        Whether the first column is the image alone.
    img_alpha
        Opacity of the image under the spots.
    ax
        Axes to draw the only panel into.
    panel_size
        Width of a panel in inches; the height follows the tissue.
    figsize
        Width and height of the figure instead.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    n_columns = tissue + sum(len(scale.columns) for scale in scales)
    if ax is not None:
        figure, axes = figure_of(ax, (panel_size, panel_size))[0], np.array([[ax]])
    else:
        extents = np.array([np.ptp(canvas.coordinates, axis=0) for canvas in canvases.values()])
        height = panel_size * float(np.clip(np.max(extents[:, 1] / extents[:, 0].clip(1e-12)), 0.4, 1.6))
        figsize = figsize or ((panel_size + 0.45) * n_columns + 0.3, height * len(rows) + 0.4)
        figure, axes = new_figure(len(rows), n_columns, figsize)
    for row, (gene, slide) in enumerate(rows):
        canvas = canvases[slide]
        if tissue:
            canvas.draw_image(axes[row, 0])
        start = int(tissue)
        of_gene = slice(row - row % len(canvases), row - row % len(canvases) + len(canvases))
        for scale in scales:
            norm = Normalize(*scale.ends(of_gene))
            beside = axes[row, start : start + len(scale.columns)]
            for panel, blocks in zip(beside, scale.columns.values(), strict=True):
                canvas.draw(blocks[row], panel, norm, scale.cmap, img_alpha)
            bar = figure.colorbar(ScalarMappable(norm, scale.cmap), ax=list(beside), shrink=0.75, aspect=22, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.set_visible(any(np.isfinite(blocks[row]).any() for blocks in scale.columns.values()))
            bar.ax.tick_params(labelsize=8, length=2)
            bar.set_label(scale.label, fontsize=8)
            start += len(scale.columns)
        name = [gene] + ([slide] if len(canvases) > 1 else []) + ([notes[gene]] if notes and gene in notes else [])
        axes[row, 0].set_ylabel("\n".join(name), fontsize=11, fontstyle="italic")
    if n_columns > 1:
        titles = [TISSUE] * tissue + [title for scale in scales for title in scale.columns]
        for panel, title in zip(axes[0], titles, strict=True):
            panel.set_title(title, fontsize=11)
        if len(canvases) == 1 and rows[0][1] is not None:
            figure.suptitle(str(rows[0][1]), fontsize=12)
    return figure
