"""Expression on the tissue, before and after completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from lgdist_scvi._anndata import get_coordinates
from lgdist_scvi._checks import list_names, require_key
from lgdist_scvi._registered import registered
from lgdist_scvi._units import log1p_cp10k
from lgdist_scvi.pl._figure import new_figure
from lgdist_scvi.pp._neighbors import lattice

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_VALUE_MAP, _STD_MAP = "viridis", "plasma"
_QUANTILE = 0.99  # of the values, at the ends of the colour scales: single spots do not set it
_MARGIN = 1.5  # around the tissue, in pitches


def completion(
    adata: AnnData,
    genes: str | Sequence[str],
    layer: str = "completed",
    counts_layer: str | None = None,
    sample_key: str | None = None,
    sample: str | None = None,
    spatial_key: str | None = None,
    *,
    size_factor_key: str | None = None,
    image: bool = True,
    size: float = 1.0,
    panel_size: float = 3.0,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Show genes on the tissue: observed, completed and, where it was stored, the standard deviation.

    Drawn by :func:`squidpy.pl.spatial_scatter`, one row for each gene. Observed and completed share their colours. Spots
    with standard deviation 0 are grey: their measured value was kept.

    Parameters
    ----------
    adata
        Annotated data after ``model.complete(adata)``, (n_obs, n_vars). Not modified.
    genes
        Gene or genes to show.
    layer
        Layer with the completed values, log1p(CP10K); ``layers[layer + "_std"]`` holds their standard deviation.
    counts_layer, size_factor_key, sample_key, spatial_key
        Layer with raw counts, columns of `adata.obs` with library size and slide, key of `adata.obsm` with the coordinates and
        of `adata.uns` with images (as Space Ranger has them); ``None``: what ``uns[layer]`` says that the model was given, else
        `adata.X`, the sum of the counts, one slide and ``"spatial"``.
    sample
        Slide to show; ``None``: the first.
    image
        Draw the tissue image underneath, if there is one.
    size
        Factor on the size of spots, which follows their spacing.
    panel_size
        Width of a panel in inches; the height follows the tissue.
    figsize
        Width and height in inches instead.

    Returns
    -------
    The figure.

    Raises
    ------
    KeyError
        If a gene, a layer, a column of `obs`, the slide or the coordinates are absent.
    ValueError
        If values are not counts or coordinates not finite.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = [genes] if isinstance(genes, str) else list(genes)
    unknown = [name for name in names if name not in adata.var_names]
    if unknown or not names:
        raise KeyError(f"{len(unknown):,} of {len(names):,} genes are not in adata.var_names: {list_names(unknown)}")
    given = registered(
        adata,
        layer,
        layer=counts_layer,
        size_factor_key=size_factor_key,
        sample_key=sample_key,
        spatial_key=spatial_key,
    )
    sample_key, spatial_key = given.sample_key, given.spatial_key
    spots, slide = _spots(adata, sample_key, sample)
    columns = adata.var_names.get_indexer(names)
    values = {
        "observed": log1p_cp10k(given.counts[spots][:, columns], given.library[spots]),
        "completed": _block(adata.layers[layer], spots, columns),
    }
    if f"{layer}_std" in adata.layers:
        deviation = _block(adata.layers[f"{layer}_std"], spots, columns)
        # what was measured has no uncertainty of the completion; drawn as 0 it would drown the rest
        values["standard deviation"] = np.where(deviation > 0, deviation, np.nan)
    coordinates = get_coordinates(adata, spatial_key, sample_key)[spots]
    canvas, options = _canvas(adata, names, values, coordinates, _library(adata, spatial_key, slide, image), size)

    shape = np.ptp(coordinates, axis=0)[:2]
    height = panel_size * float(np.clip(shape[1] / max(shape[0], 1e-12), 0.4, 1.6))
    figure, axes = new_figure(
        len(names), len(values), figsize or ((panel_size + 0.45) * len(values) + 0.3, height * len(names) + 0.4)
    )
    for row, gene in enumerate(names):
        both = np.concatenate([values["observed"][:, row], values["completed"][:, row]])
        shared = Normalize(0, _ends(both)[1])
        for column, what in enumerate(values):
            ax = axes[row, column]
            is_std = what == "standard deviation"
            norm = Normalize(*_ends(values[what][:, row])) if is_std else shared
            colors = _STD_MAP if is_std else _VALUE_MAP
            _draw(canvas, gene, what, ax, norm, colors, options)
            ax.set_title(what if row == 0 else "", fontsize=11)
            ax.set_ylabel(gene if column == 0 else "", fontsize=11, fontstyle="italic")
            if what != "observed":
                mappable = ScalarMappable(norm, colors)
                bar = figure.colorbar(
                    mappable, ax=axes[row, :2] if what == "completed" else ax, shrink=0.75, aspect=22, pad=0.02
                )
                bar.outline.set_visible(False)
                bar.ax.set_visible(not is_std or np.isfinite(values[what][:, row]).any())
                bar.ax.tick_params(labelsize=8, length=2)
                bar.set_label("sd of log1p(CP10K); grey: kept" if is_std else "log1p(CP10K)", fontsize=8)
    if sample_key is not None:
        figure.suptitle(str(slide), fontsize=12)
    return figure


def _spots(adata: AnnData, sample_key: str | None, sample: str | None) -> tuple[np.ndarray, str | None]:
    """Which spots to show, and the name of their slide."""
    if sample_key is None:
        if sample is not None:
            raise KeyError(f"sample={sample!r} needs sample_key, the column of adata.obs that names slides")
        return np.arange(adata.n_obs), None
    require_key(adata.obs, sample_key, "adata.obs", "sample_key is the column that names the slide of each spot")
    labels = adata.obs[sample_key].astype(str)
    slide = labels.iloc[0] if sample is None else str(sample)
    spots = np.flatnonzero(labels.to_numpy() == slide)
    if not len(spots):
        raise KeyError(
            f"no spot of adata.obs[{sample_key!r}] is {slide!r}; available: {list_names(labels.unique(), 20)}"
        )
    return spots, slide


def _block(matrix: Any, spots: np.ndarray, columns: np.ndarray) -> np.ndarray:
    block = matrix[spots][:, columns]
    return block.toarray() if sparse.issparse(block) else np.asarray(block)


def _library(adata: AnnData, spatial_key: str, slide: str | None, image: bool) -> Mapping[str, Any] | None:
    """Image and scale factors of the slide in `uns`, if there are any and it is clear which."""
    libraries = adata.uns.get(spatial_key) if image else None
    if not isinstance(libraries, Mapping):
        return None
    if slide in libraries:
        return libraries[slide]
    return next(iter(libraries.values())) if len(libraries) == 1 else None


def _canvas(
    adata: AnnData,
    genes: Sequence[str],
    values: Mapping[str, np.ndarray],
    coordinates: np.ndarray,
    library: Mapping[str, Any] | None,
    size: float,
) -> tuple[AnnData, dict[str, Any]]:
    """Collect what squidpy draws into a small AnnData, with spots sized by their spacing."""
    from anndata import AnnData
    from scipy.spatial import cKDTree

    kind, pitch = lattice(coordinates)
    if kind == "irregular":
        pitch = np.median(cKDTree(coordinates).query(coordinates, k=2)[0][:, 1]) if len(coordinates) > 1 else 1.0
    resolution, scale = _image(library)
    # with an image, the tissue shows between the spots
    diameter = size * pitch * {"hexagonal": 0.95, "square": 0.95, "irregular": 1.3}[kind]
    if resolution is not None:
        diameter *= 0.85
    images = {} if resolution is None else {resolution: library["images"][resolution]}
    name = resolution or "hires"
    canvas = AnnData(
        obs=adata.obs[[]].iloc[: len(coordinates)].set_axis([str(i) for i in range(len(coordinates))]),
        var=adata.var[[]].loc[list(genes)],
        layers=dict(values),
        obsm={"spatial": coordinates[:, :2]},
        uns={
            "spatial": {
                "slide": {
                    "images": images,
                    "scalefactors": {f"tissue_{name}_scalef": scale, "spot_diameter_fullres": diameter},
                }
            }
        },
    )
    low, high = coordinates[:, :2].min(axis=0) - _MARGIN * pitch, coordinates[:, :2].max(axis=0) + _MARGIN * pitch
    options = {
        "shape": "square" if kind == "square" else "circle",
        "img": resolution is not None,
        "img_res_key": name,
        "img_alpha": 0.7,
        "crop_coord": [(*low, *high)] if resolution is not None else None,
    }
    return canvas, options


def _image(library: Mapping[str, Any] | None) -> tuple[str | None, float]:
    """Name and scale of the finest image that has a scale factor."""
    images, factors = (library or {}).get("images") or {}, (library or {}).get("scalefactors") or {}
    for resolution in ("hires", "lowres"):
        if resolution in images and f"tissue_{resolution}_scalef" in factors:
            return resolution, float(factors[f"tissue_{resolution}_scalef"])
    return None, 1.0


def _draw(
    canvas: AnnData, gene: str, what: str, ax: Axes, norm: Normalize, colors: str, options: dict[str, Any]
) -> None:
    import squidpy as sq

    sq.pl.spatial_scatter(
        canvas,
        color=gene,
        layer=what,
        library_id="slide",
        ax=ax,
        norm=norm,
        cmap=colors,
        colorbar=False,
        edgecolors="none",
        na_color="0.85",
        **options,
    )
    ax.set(xlabel="", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale: quantiles of the values that are there."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.quantile(finite, [1 - _QUANTILE, _QUANTILE])
    if high <= 0:  # expressed in fewer spots than the scale leaves out
        high = finite.max()
    return float(low), float(high) if high > low else float(low) + 1.0
