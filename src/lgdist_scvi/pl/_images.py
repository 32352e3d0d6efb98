"""Patches of tissue of the spots where something is highest and lowest."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lgdist_scvi._anndata import get_counts, in_memory
from lgdist_scvi._checks import check_not_synthetic, check_positive_int, is_synthetic, list_names, require_key
from lgdist_scvi._units import library_size, log1p_cp10k
from lgdist_scvi.pl._figure import mark_synthetic, new_figure
from lgdist_scvi.pp._images import image_patches as cut_patches

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure


def image_patches(
    adata: AnnData,
    color: str | np.ndarray,
    image: Any = None,
    n_patches: int = 8,
    layer: str | None = None,
    *,
    patch_key: str | None = None,
    panel_size: float = 1.2,
    save: str | PathLike[str] | None = None,
    dpi: float = 150,
    allow_synthetic: bool = False,
    **kwargs: Any,
) -> Figure:
    """Show the tissue patches of the spots where a gene, or any other value, is highest and lowest.

    Parameters
    ----------
    adata
        Annotated data, (n_obs, n_vars). Not modified.
    color
        Gene, numeric column of `adata.obs`, or one value for each spot, (n_obs,). Spots with NaN are left out.
    image
        As in :func:`~lgdist_scvi.pp.image_patches`.
    n_patches
        Patches in each row of the figure.
    layer
        Layer with the values of a gene, as they are; ``None``: log1p(CP10K) of the counts in `X`.
    patch_key
        Key of `obsm` with patches that were cut before, uint8 (n_obs, size, size, 3).
    panel_size
        Edge of a patch in inches.
    save
        File to write the figure to.
    dpi
        Dots per inch of that file.
    allow_synthetic
        Draw spots that :meth:`C2LST.synthetic_pairs` made, too: with a star, and the figure says how many there are.
    **kwargs
        Further arguments of :func:`~lgdist_scvi.pp.image_patches`, such as `patch_px` and `sample_key`.

    Returns
    -------
    The figure: highest values in the first row, lowest in the second, each with its value.

    Raises
    ------
    KeyError
        If the gene or column, the layer, the patches or the image are absent.
    ValueError
        If spots are synthetic, values are not numbers, one for each spot, or all are NaN; or as in
        :func:`~lgdist_scvi.pp.image_patches`.

    Examples
    --------
    >>> pl.image_patches(adata, "ERBB2", "slide.tif", patch_px=224)  # doctest: +SKIP
    """
    check_not_synthetic(adata, allow_synthetic)
    check_positive_int(n_patches, "n_patches")
    values = _values(adata, color, layer)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]
    if not len(order):
        raise ValueError("there is no spot with a value to show; all are NaN")
    n_patches = min(n_patches, len(order))
    chosen = np.concatenate([order[::-1][:n_patches], order[:n_patches]])
    if patch_key is not None:
        require_key(adata.obsm, patch_key, "adata.obsm", "pp.image_patches(adata, key_added=...) writes patches there")
        patches = np.asarray(adata.obsm[patch_key][chosen])
        if patches.ndim != 4:
            raise ValueError(f"adata.obsm[{patch_key!r}] has shape {patches.shape}; patches are (n_obs, size, size, 3)")
    else:
        patches = cut_patches(adata, image, indices=chosen, **{"silent": True, **kwargs})

    figure, axes = new_figure(2, n_patches, (panel_size * n_patches + 0.5, 2 * (panel_size + 0.2) + 0.3))
    synthetic = is_synthetic(adata)
    for ax, spot, patch in zip(axes.ravel(), chosen, patches, strict=True):
        ax.imshow(patch)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{values[spot]:.3g}{'*' if synthetic[spot] else ''}", fontsize=9, pad=2)
    for ax, name in zip(axes[:, 0], ("highest", "lowest"), strict=True):
        ax.set_ylabel(name, fontsize=10)
    if isinstance(color, str):
        figure.suptitle(color, fontsize=11)
    mark_synthetic(figure, adata)
    if save is not None:
        figure.savefig(save, dpi=dpi)
    return figure


def _values(adata: AnnData, color: str | np.ndarray, layer: str | None) -> np.ndarray:
    """Value of each spot, float64 (n_obs,)."""
    if not isinstance(color, str):
        values, where = color, "color"
    elif color in adata.var_names:
        gene = adata.var_names.get_loc(color)
        if not isinstance(gene, int):
            raise ValueError(f"{color!r} occurs more than once in adata.var_names; call adata.var_names_make_unique()")
        where = f"the values of {color!r}"
        if layer is None:
            counts = get_counts(adata)
            values = log1p_cp10k(counts[:, [gene]], library_size(counts))
        else:
            require_key(adata.layers, layer, "adata.layers", "layer holds the values of genes")
            values = in_memory(adata.layers[layer][:, [gene]])
        values = np.ravel(values.toarray() if hasattr(values, "toarray") else values)
    elif color in adata.obs:
        values, where = adata.obs[color], f"adata.obs[{color!r}]"
    else:
        numeric = [name for name in adata.obs if pd.api.types.is_numeric_dtype(adata.obs[name])]
        raise KeyError(
            f"{color!r} is neither in adata.var_names nor in adata.obs; columns with numbers: {list_names(numeric, 20) or 'none'}"
        )
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} is not numeric; pass a gene, a column of numbers or one number for each spot"
        ) from error
    if values.shape != (adata.n_obs,):
        raise ValueError(f"{where} has shape {values.shape}; expected one value for each of the {adata.n_obs:,} spots")
    return values
