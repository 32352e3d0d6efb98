"""Expression predicted from an image, beside the image and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from lgdist_scvi._anndata import get_coordinates, get_var
from lgdist_scvi._checks import check_not_synthetic, either
from lgdist_scvi._registered import registered, registered_setup
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.pl._canvas import Canvas
from lgdist_scvi.pl._figure import mark_synthetic
from lgdist_scvi.pl._panels import STD_MAP, Scale, column, draw_panels, named_genes, named_slides
from lgdist_scvi.pp._image_slides import PatchSize, open_slides

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_MOST_ROWS = 4  # of genes that were not named


def prediction(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    image: Any = None,
    layer: str = "predicted",
    counts_layer: str | None = None,
    sample_key: str | None = None,
    sample: str | Sequence[str] | None = None,
    spatial_key: str | None = None,
    *,
    color: str | Sequence[str] | None = None,
    library_key: str | None = None,
    size_factor_key: str | None = None,
    image_res_key: str | None = None,
    img_alpha: float = 0.0,
    cmap: str | Colormap = "viridis",
    size: float = 1.0,
    panel_size: float = 3.0,
    figsize: tuple[float, float] | None = None,
    save: str | PathLike[str] | None = None,
    dpi: float = 150,
    allow_synthetic: bool = False,
) -> Figure:
    """Show the tissue, and genes on it: measured, predicted from the image, and the standard deviation of the prediction.

    One row for each gene on each slide. Measured and predicted share their colours, on all slides; the standard deviation has its
    own. Nothing need have been measured: that column is left out then, and spots without counts are grey. So is the tissue without
    an image.

    Parameters
    ----------
    adata
        Annotated data after ``stem.predict(adata)``, (n_obs, n_vars). Not modified.
    genes
        Gene or genes to show; ``None``: up to four of the highest skill (fewer on several slides).
    image
        Image of the tissue, as in :func:`~lgdist_scvi.pp.image_features`; ``None``: that of ``uns["spatial"]``, if there is one;
        ``False``: none.
    layer
        Layer with the predicted values, log1p(CP10K); ``layers[layer + "_std"]`` holds their standard deviation.
    counts_layer, size_factor_key, sample_key, spatial_key
        As in :func:`completion`; ``None``: what ``uns[layer]`` says that the model was given.
    sample
        Slide or slides to show; ``None``: all, of more than six the first six.
    color, library_key
        squidpy's words for `genes` and `sample_key`.
    image_res_key
        Which image of ``uns["spatial"]``, such as ``"hires"``; ``None``: the finest. With `image`: as in
        :func:`~lgdist_scvi.pp.image_features`.
    img_alpha
        Opacity of the image under the spots, 0 to 1.
    cmap
        Colours of measured and predicted values.
    size
        Factor on the size of spots, which follows their spacing.
    panel_size
        Width of a panel in inches; the height follows the tissue.
    figsize
        Width and height of the figure in inches instead.
    save
        File to write the figure to.
    dpi
        Dots per inch of that file.
    allow_synthetic
        Draw spots that :meth:`C2LST.synthetic_pairs` made, too; the figure says how many there are.

    Returns
    -------
    The figure. Under a gene's name stands its skill: what the model knows of it beyond its mean, on slides that it did not see.

    Raises
    ------
    KeyError
        If a gene, a layer, a column of `obs`, a slide, the image named or the coordinates are absent.
    ValueError
        If spots are synthetic, values are not counts, coordinates not finite, no gene is named and none has a skill, an image cannot
        be read, or one argument is given under two names.

    Examples
    --------
    >>> pl.prediction(adata, "ERBB2", "slide.tif")  # doctest: +SKIP
    """
    check_not_synthetic(adata, allow_synthetic)
    genes = either(genes=genes, color=color)
    chosen = {
        "size_factor_key": size_factor_key,
        "sample_key": either(sample_key=sample_key, library_key=library_key),
        "spatial_key": spatial_key,
    }
    setup = registered_setup(adata, layer, layer=counts_layer, **chosen)
    sample_key, spatial_key = setup.get("sample_key"), setup["spatial_key"]
    coordinates = get_coordinates(adata, spatial_key, sample_key)[:, :2]
    slides = named_slides(adata, sample_key, sample)
    skill = get_var(adata).get(f"{layer}_skill")
    if genes is None:
        if skill is None or not skill.notna().any():
            raise ValueError(
                f"adata.var[{f'{layer}_skill'!r}] has no skill to choose genes by; name genes, such as {str(adata.var_names[0])!r}"
            )
        genes = list(skill.nlargest(max(1, _MOST_ROWS // len(slides))).index)
    names = named_genes(adata, genes)

    rows = [(gene, slide) for gene in names for slide in slides]
    places = [(slides[slide], adata.var_names.get_loc(gene)) for gene, slide in rows]
    columns = {"predicted": [column(adata.layers[layer], spots, gene) for spots, gene in places]}
    if (
        counts_layer is not None
        or (adata.X if setup.get("layer") is None else adata.layers.get(setup["layer"])) is not None
    ):
        given = registered(adata, layer, counts_layer, **chosen)
        measured = [
            np.where(given.library[s] > 0, log1p_cp10k(given.counts[s][:, [g]], given.library[s])[:, 0], np.nan)
            for s, g in places
        ]
        if np.isfinite(np.concatenate(measured)).any():
            columns = {"measured": measured, **columns}
    scales = [Scale(columns, cmap, "log1p(CP10K)")]
    if f"{layer}_std" in adata.layers:
        deviations = [column(adata.layers[f"{layer}_std"], spots, gene) for spots, gene in places]
        scales.append(Scale({"standard deviation": deviations}, STD_MAP, "sd of log1p(CP10K)", from_zero=False))

    canvases = _canvases(adata, slides, coordinates, image, image_res_key, sample_key, spatial_key, size)
    figure = draw_panels(
        rows,
        canvases,
        scales,
        notes={} if skill is None else {gene: f"skill {skill[gene]:.2f}" for gene in names if np.isfinite(skill[gene])},
        tissue=any(canvas.image is not None for canvas in canvases.values()),
        img_alpha=img_alpha,
        panel_size=panel_size,
        figsize=figsize,
    )
    mark_synthetic(figure, adata)
    if save is not None:
        figure.savefig(save, dpi=dpi, bbox_inches="tight")
    return figure


def _canvases(
    adata: AnnData,
    slides: dict[str | None, np.ndarray],
    coordinates: np.ndarray,
    image: Any,
    image_res_key: str | None,
    sample_key: str | None,
    spatial_key: str,
    size: float,
) -> dict[str | None, Canvas]:
    """Each slide over its image: one that was passed, or that of `uns`."""
    if image is None or image is False:
        libraries = adata.uns.get(spatial_key) if image is None else None
        key = image_res_key if image is None else None
        return {slide: Canvas(coordinates[spots], libraries, slide, key, size) for slide, spots in slides.items()}
    canvases = {slide: Canvas(coordinates[spots], None, slide, None, size) for slide, spots in slides.items()}
    with ExitStack() as stack:
        for slide in open_slides(
            adata, image, PatchSize(None, None, None), image_res_key, sample_key, spatial_key, stack
        ):
            if slide.name in slides:
                thumbnail = slide.image.thumbnail
                factor = {"tissue_hires_scalef": thumbnail.shape[1] / slide.image.shape[1]}
                library = {"images": {"hires": thumbnail}, "scalefactors": factor}
                canvases[slide.name] = Canvas(slide.pixels, {slide.name: library}, slide.name, None, size)
                slide.image.release()
    if all(canvas.image is None for canvas in canvases.values()):
        raise ValueError(
            "image shows nothing at the spots of the slides drawn; pass the image of these slides, with sample_key=... that names "
            "them if there are several, and image_res_key=... if it is not in full resolution"
        )
    return canvases
