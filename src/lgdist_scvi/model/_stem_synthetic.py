"""Generated patches beside the spots that they were made for, as Stem learns from them."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scvi import settings

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import list_names, mapping, require_key
from lgdist_scvi.data import ImageField
from lgdist_scvi.model._lgdist import LGDiST
from lgdist_scvi.model.base._record import to_json

if TYPE_CHECKING:
    from lgdist_scvi.model._stem import Stem


def synthetic_components(model: Stem, pairs: AnnData, stage: str) -> np.ndarray:
    """Components of generated patches, float32, (n_obs, n_patches, n_components), NaN where a spot has fewer.

    Patches of a slide are standardised among themselves, as a slide of another stain would be.

    Parameters
    ----------
    model
        Of the spots that patches were made for.
    pairs
        Of :meth:`C2LST.synthetic_pairs`, with image features.
    stage
        The one that is to be trained.

    Raises
    ------
    TypeError, KeyError, ValueError
        If they are no synthetic pairs of these spots, their features are of another encoder, or the stage does not learn from them.
    """
    if stage == "diffusion" or not len(model.module.networks):
        raise ValueError(
            "the diffusion learns nothing from synthetic pairs, the networks do; leave synthetic out, or train them"
        )
    if not isinstance(pairs, AnnData):
        raise TypeError(f"synthetic must be an AnnData of C2LST.synthetic_pairs, got {type(pairs).__name__}")
    for key in ("synthetic", "source"):
        require_key(pairs.obs, key, "synthetic.obs", "C2LST.synthetic_pairs(n) makes synthetic pairs")
    if n_real := int((pairs.obs["synthetic"].astype(str) != "True").sum()):
        raise ValueError(
            f"{n_real:,} of {pairs.n_obs:,} spots of synthetic are not flagged in obs['synthetic']; pass pairs alone"
        )
    dataset, image_key = model.adata_manager.create_torch_dataset(), model.registry_["setup_args"]["image_key"]
    require_key(
        pairs.obsm, image_key, "synthetic.obsm",
        f"pp.image_features(pairs, patch_key=..., key_added={image_key!r}) with the encoder of the training makes them",
    )  # fmt: skip
    trained = model.get_state_registry(keys.IMAGE)
    made = ImageField(image_key).transfer_field(trained, pairs)
    sizes = [mapping(state["encoder"]).get("patch_size") for state in (trained, made)]
    if None not in (trained["encoder"], made["encoder"]) and sizes[0] != sizes[1]:
        warnings.warn(
            f"features of synthetic pairs were made of patches of {sizes[1] or 'all'} pixels, and those of the training of {sizes[0] or 'all'}: "
            "large patches show more than small ones; make both alike: pp.image_patches(adata, size=..., key_added=...), then "
            "pp.image_features(adata, patch_key=...)",
            stacklevel=settings.warnings_stacklevel + 1,
        )
    spot = dataset.adata.obs_names.get_indexer(pairs.obs["source"].astype(str))
    sample_key = model.registry_["setup_args"]["sample_key"]
    if sample_key in pairs.obs:  # barcodes are the same on all slides
        slides = dataset.adata.obs[sample_key].astype(str).to_numpy()[spot]
        spot[slides != pairs.obs[sample_key].astype(str).to_numpy()] = -1
    if (foreign := spot < 0).any():
        raise ValueError(
            f"{int(foreign.sum()):,} of {pairs.n_obs:,} synthetic pairs were made for spots that are not in the training data "
            f"({list_names(pairs.obs['source'][foreign])}); make pairs with a C2LST of the same spots"
        )
    features = np.asarray(pairs.obsm[image_key], dtype=np.float32)
    components = model.module.components.transform(features, dataset.samples[spot])
    order = np.argsort(spot, kind="stable")
    n_of_spot = np.bincount(spot, minlength=len(dataset))
    slot = np.arange(len(spot)) - np.repeat(np.cumsum(n_of_spot) - n_of_spot, n_of_spot)
    found = np.full((len(dataset), n_of_spot.max(), components.shape[1]), np.nan, dtype=np.float32)
    found[spot[order], slot] = components[order]
    return found


def note_sources(model: Stem, targets: str | LGDiST, synthetic: AnnData | None) -> None:
    """Keep in the record of the last training what it learnt from, and how much synthetic pairs count."""
    if not model.training_:
        return
    call = model.training_[-1]
    if isinstance(targets, LGDiST):
        call["left_out"].append("targets")
    else:
        call["arguments"]["targets"] = targets
    if synthetic is not None:
        call["left_out"].append("synthetic")
        made = json.loads(to_json(dict(mapping(synthetic.uns.get("synthetic")))))
        call["synthetic"] = {"n": synthetic.n_obs, "weight": float(model.module.synthetic_weight), "made": made}
