"""What patches are made of, without a network: stains and nuclei."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lgdist_scvi._patches import check_patches

_NUCLEUS_UM = 8.0  # diameter
_DARKER = 0.02  # of a nucleus against what is around it, in units of rgb2hed


def patch_composition(patches: np.ndarray, patch_um: float = 112.0) -> pd.DataFrame:
    """Measure the load of haematoxylin and eosin of patches, and count nuclei.

    Stains are separated by Ruifrok and Johnston's matrix (2001; :func:`skimage.color.rgb2hed`, in its units). Nuclei are maxima of
    the Laplacian of Gaussians of haematoxylin, at the scale of a nucleus of 8 micrometres; touching ones count as one.

    Parameters
    ----------
    patches
        uint8, (n, size, size, 3).
    patch_um
        Edge of a patch in micrometres.

    Returns
    -------
    Columns `haematoxylin`, `eosin` (mean over pixels) and `nuclei` (number), a row for each patch.

    Raises
    ------
    ValueError
        If `patches` are none, or nuclei are smaller than a pixel.
    """
    from scipy.ndimage import gaussian_laplace
    from skimage.color import rgb2hed
    from skimage.feature import peak_local_max

    patches = np.asarray(patches)
    check_patches(patches, "patches")
    diameter = _NUCLEUS_UM * patches.shape[1] / patch_um
    if not diameter >= 1:
        raise ValueError(
            f"a nucleus of {_NUCLEUS_UM:.0f} micrometres is {diameter:.2g} pixels wide in patches of {patch_um:g} micrometres; pass finer "
            "patches, or their patch_um"
        )
    sigma = diameter / 2 / np.sqrt(2)
    rows = []
    for patch in patches:
        stains = rgb2hed(patch)
        blobs = -(sigma**2) * gaussian_laplace(stains[..., 0], sigma)
        peaks = peak_local_max(
            blobs, min_distance=max(1, int(diameter / 2)), threshold_abs=_DARKER, exclude_border=False
        )
        rows.append((stains[..., 0].mean(), stains[..., 1].mean(), len(peaks)))
    return pd.DataFrame(rows, columns=["haematoxylin", "eosin", "nuclei"])
