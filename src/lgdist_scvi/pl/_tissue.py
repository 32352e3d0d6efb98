"""Expression on the tissue, before and after completion."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from lgdist_scvi._anndata import get_coordinates, get_samples
from lgdist_scvi._checks import check_not_synthetic, either
from lgdist_scvi._registered import registered
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.pl._canvas import Canvas
from lgdist_scvi.pl._figure import mark_synthetic
from lgdist_scvi.pl._genes import telling_genes
from lgdist_scvi.pl._panels import STD_MAP, Scale, column, draw_panels, named_genes, named_slides

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_MOST_ROWS = 4  # of genes that were not named


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
    allow_synthetic: bool = False,
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
    allow_synthetic
        Draw spots that :meth:`C2LST.synthetic_pairs` made, too; the figure says how many there are.

    Returns
    -------
    The figure.

    Raises
    ------
    KeyError
        If a gene, a layer, a column of `obs`, a slide, the image named or the coordinates are absent.
    ValueError
        If spots are synthetic, values are not counts, coordinates not finite, no gene is left to show, one argument is given under
        two names, or `ax` is given for more than one panel.

    Examples
    --------
    >>> pl.completion(adata)  # doctest: +SKIP
    >>> pl.completion(adata, "ERBB2", sample="A1", save="erbb2.png", dpi=300)  # doctest: +SKIP
    """
    check_not_synthetic(adata, allow_synthetic)
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
    slides = named_slides(adata, given.sample_key, sample)
    if genes is None:
        n_genes = max(1, _MOST_ROWS // len(slides)) if ax is None else 1
        samples = get_samples(adata, given.sample_key)
        genes = telling_genes(adata, layer, given, coordinates, samples, n_genes)
    names = named_genes(adata, genes)
    if ax is not None and len(names) * len(slides) > 1:
        raise ValueError(
            f"ax takes one panel, got {len(names):,} genes on {len(slides):,} slides; name one gene and, as sample, one slide"
        )

    rows = [(gene, slide) for gene in names for slide in slides]
    places = [(slides[slide], adata.var_names.get_loc(gene)) for gene, slide in rows]
    values = {"completed": [column(adata.layers[layer], spots, gene) for spots, gene in places]}
    scales = [Scale(values, cmap, "log1p(CP10K)")]
    if ax is None:
        observed = [log1p_cp10k(given.counts[s][:, [g]], given.library[s])[:, 0] for s, g in places]
        scales[0].columns = {"observed": observed, **values}
        if f"{layer}_std" in adata.layers:
            deviations = [column(adata.layers[f"{layer}_std"], spots, gene) for spots, gene in places]
            # what was measured has no uncertainty of the completion; drawn as 0 it would drown the rest
            deviations = [np.where(deviation > 0, deviation, np.nan) for deviation in deviations]
            label = "sd of log1p(CP10K); grey: kept"
            scales.append(Scale({"standard deviation": deviations}, STD_MAP, label, from_zero=False))
    libraries = adata.uns.get(given.spatial_key) if image else None
    canvases = {
        slide: Canvas(coordinates[spots], libraries, slide, img_res_key if image else None, size)
        for slide, spots in slides.items()
    }
    figure = draw_panels(rows, canvases, scales, img_alpha=img_alpha, ax=ax, panel_size=panel_size, figsize=figsize)
    mark_synthetic(figure, adata)
    if save is not None:
        figure.savefig(save, dpi=dpi, bbox_inches="tight")
    return figure
