"""Expression on the tissue, before and after completion."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from lgdist_scvi._anndata import get_coordinates, get_obs, get_samples, in_memory
from lgdist_scvi._checks import either, list_names
from lgdist_scvi._registered import registered
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.pl._canvas import Canvas
from lgdist_scvi.pl._figure import figure_of, new_figure
from lgdist_scvi.pl._genes import telling_genes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_OBSERVED, _COMPLETED, _STD = "observed", "completed", "standard deviation"
_STD_MAP = "plasma"
_QUANTILE = 0.99  # of the values, at the ends of the colour scales: single spots do not set it
_MOST_ROWS = 4  # of genes that were not named
_MOST_SLIDES = 6  # of slides that were not named


def completion(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    layer: str = "completed",
    counts_layer: str | None = None,
    sample_key: str | None = None,
    sample: str | Sequence[str] | None = None,
    spatial_key: str | None = None,
    *,
    color: str | Sequence[str] | None = None,
    library_key: str | None = None,
    size_factor_key: str | None = None,
    image: bool = True,
    img_res_key: str | None = None,
    img_alpha: float = 0.7,
    cmap: str | Colormap = "viridis",
    size: float = 1.0,
    ax: Axes | None = None,
    panel_size: float = 3.0,
    figsize: tuple[float, float] | None = None,
    save: str | PathLike[str] | None = None,
    dpi: float = 150,
) -> Figure:
    """Show genes on the tissue: observed, completed and, where it was stored, the standard deviation.

    Drawn by :func:`squidpy.pl.spatial_scatter`, one row for each gene on each slide. Observed and completed share their
    colours, on all slides. Spots with standard deviation 0 are grey: their measured value was kept.

    Parameters
    ----------
    adata
        Annotated data after ``model.complete(adata)``, (n_obs, n_vars). Not modified.
    genes
        Gene or genes to show; ``None``: up to four completed genes with zeros and spatial structure, of different patterns
        (fewer on several slides).
    layer
        Layer with the completed values, log1p(CP10K); ``layers[layer + "_std"]`` holds their standard deviation.
    counts_layer, size_factor_key, sample_key, spatial_key
        Layer with raw counts, columns of `adata.obs` with library size and slide, key of `adata.obsm` with the coordinates and
        of `adata.uns` with images (as Space Ranger has them); ``None``: what ``uns[layer]`` says that the model was given, else
        `adata.X`, the sum of the counts, one slide and ``"spatial"``.
    sample
        Slide or slides to show; ``None``: all, of more than six the first six.
    color, library_key
        squidpy's words for `genes` and `sample_key`.
    image
        Draw the tissue image underneath, if there is one with a scale factor.
    img_res_key
        Which image, such as ``"hires"``; ``None``: the finest.
    img_alpha
        Opacity of the image, 0 to 1.
    cmap
        Colours of observed and completed values.
    size
        Factor on the size of spots, which follows their spacing.
    ax
        Axes to draw the completed values of one gene on one slide into, and nothing else.
    panel_size
        Width of a panel in inches; the height follows the tissue.
    figsize
        Width and height of a new figure in inches instead.
    save
        File to write the figure to.
    dpi
        Dots per inch of that file.

    Returns
    -------
    The figure.

    Raises
    ------
    KeyError
        If a gene, a layer, a column of `obs`, a slide, the image named or the coordinates are absent.
    ValueError
        If values are not counts, coordinates not finite, no gene is left to show, one argument is given under two names, or `ax`
        is given for more than one panel.

    Examples
    --------
    >>> pl.completion(adata)  # doctest: +SKIP
    >>> pl.completion(adata, "ERBB2", sample="A1", save="erbb2.png", dpi=300)  # doctest: +SKIP
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    genes = either(genes=genes, color=color)
    given = registered(
        adata,
        layer,
        counts_layer,
        size_factor_key=size_factor_key,
        sample_key=either(sample_key=sample_key, library_key=library_key),
        spatial_key=spatial_key,
    )
    coordinates = get_coordinates(adata, given.spatial_key, given.sample_key)
    slides = _slides(adata, given.sample_key, sample)
    if genes is None:
        n_genes = max(1, _MOST_ROWS // len(slides)) if ax is None else 1
        samples = get_samples(adata, given.sample_key)
        genes = telling_genes(adata, layer, given, coordinates, samples, n_genes)
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is empty; pass names, or None to have some chosen")
    if unknown := [name for name in names if name not in adata.var_names]:
        raise KeyError(f"{len(unknown):,} of {len(names):,} genes are not in adata.var_names: {list_names(unknown)}")
    if adata.var_names.isin(names).sum() > len(set(names)):
        raise ValueError(
            "names of these genes occur more than once in adata.var_names; call adata.var_names_make_unique()"
        )
    if ax is not None and len(names) * len(slides) > 1:
        raise ValueError(
            f"ax takes one panel, got {len(names):,} genes on {len(slides):,} slides; name one gene and, as sample, one slide"
        )

    rows = [(gene, slide) for gene in names for slide in slides]
    values = _values(adata, layer, given.counts, given.library, rows, slides, ax is not None)
    libraries = adata.uns.get(given.spatial_key) if image else None
    canvases = {
        slide: Canvas(coordinates[spots], libraries, slide, img_res_key if image else None, size)
        for slide, spots in slides.items()
    }
    if ax is not None:
        figure, axes = figure_of(ax, (panel_size, panel_size))[0], np.array([[ax]])
    else:
        extents = np.array([np.ptp(coordinates[spots, :2], axis=0) for spots in slides.values()])
        height = panel_size * float(np.clip(np.max(extents[:, 1] / extents[:, 0].clip(1e-12)), 0.4, 1.6))
        figsize = figsize or ((panel_size + 0.45) * len(values) + 0.3, height * len(rows) + 0.4)
        figure, axes = new_figure(len(rows), len(values), figsize)
    for row, (gene, slide) in enumerate(rows):
        of_gene = slice(row - row % len(slides), row - row % len(slides) + len(slides))
        shared = np.concatenate([block for what in values if what != _STD for block in values[what][of_gene]])
        for column, (what, blocks) in enumerate(values.items()):
            ax = axes[row, column]
            if what == _STD:
                norm, colors = Normalize(*_ends(np.concatenate(blocks[of_gene]))), _STD_MAP
            else:
                norm, colors = Normalize(0, _ends(shared)[1]), cmap
            canvases[slide].draw(blocks[row], ax, norm, colors, img_alpha)
            if row == 0 and len(values) > 1:
                ax.set_title(what, fontsize=11)
            if column == 0:
                ax.set_ylabel(gene if len(slides) == 1 else f"{gene}\n{slide}", fontsize=11, fontstyle="italic")
            if what != _OBSERVED:
                beside = axes[row, :2] if what == _COMPLETED and len(values) > 1 else ax
                bar = figure.colorbar(ScalarMappable(norm, colors), ax=beside, shrink=0.75, aspect=22, pad=0.02)
                bar.outline.set_visible(False)
                bar.ax.set_visible(bool(np.isfinite(blocks[row]).any()))
                bar.ax.tick_params(labelsize=8, length=2)
                bar.set_label("sd of log1p(CP10K); grey: kept" if what == _STD else "log1p(CP10K)", fontsize=8)
    if given.sample_key is not None and len(slides) == 1 and len(values) > 1:
        figure.suptitle(str(next(iter(slides))), fontsize=12)
    if save is not None:
        figure.savefig(save, dpi=dpi, bbox_inches="tight")
    return figure


def _slides(adata: AnnData, sample_key: str | None, sample: str | Sequence[str] | None) -> dict[str | None, np.ndarray]:
    """Spots of each slide to show."""
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


def _values(
    adata: AnnData,
    layer: str,
    counts: np.ndarray | sparse.csr_matrix,
    library: np.ndarray,
    rows: Sequence[tuple[str, str | None]],
    slides: dict[str | None, np.ndarray],
    completed_only: bool,
) -> dict[str, list[np.ndarray]]:
    """What each panel shows, log1p(CP10K), (n_spots,) for each row."""
    places = [(slides[slide], adata.var_names.get_loc(gene)) for gene, slide in rows]
    values = (
        {} if completed_only else {_OBSERVED: [log1p_cp10k(counts[s][:, [g]], library[s])[:, 0] for s, g in places]}
    )
    values[_COMPLETED] = [_column(adata.layers[layer], spots, gene) for spots, gene in places]
    if f"{layer}_std" in adata.layers and not completed_only:
        deviations = [_column(adata.layers[f"{layer}_std"], spots, gene) for spots, gene in places]
        # what was measured has no uncertainty of the completion; drawn as 0 it would drown the rest
        values[_STD] = [np.where(deviation > 0, deviation, np.nan) for deviation in deviations]
    return values


def _column(matrix: Any, spots: np.ndarray, gene: int) -> np.ndarray:
    block = in_memory(matrix[:, [gene]])
    return (block.toarray() if sparse.issparse(block) else block)[spots, 0]


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale: quantiles of the values that are there."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.quantile(finite, [1 - _QUANTILE, _QUANTILE])
    if high <= 0:  # expressed in fewer spots than the scale leaves out
        high = finite.max()
    return float(low), float(high) if high > low else float(low) + 1.0
