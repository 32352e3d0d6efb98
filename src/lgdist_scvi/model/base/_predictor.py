"""From a model and data to a predictor: the data set, the first round's prefill and the region effects."""

from __future__ import annotations

import numpy as np
from scvi.model.base import BaseModelClass

from lgdist_scvi import _keys as keys
from lgdist_scvi.data import NeighborhoodDataset
from lgdist_scvi.inference import CompletedRows, EstimatedEffects, Predictor, estimate_region_effects, fits_in_memory
from lgdist_scvi.module.lgdist import Hide


class DataMixin:
    """What a module needs of data beside the fields that are registered."""

    def _data_for(self, dataset: NeighborhoodDataset, hide: Hide = "nothing") -> NeighborhoodDataset:
        """Data with further fields; for training with ``"set_aside"``."""
        return with_prefill(self, dataset, hide)


def with_prefill(model: BaseModelClass, dataset: NeighborhoodDataset, hide: Hide = "nothing") -> NeighborhoodDataset:
    """Data in which a first round of training, if there was one, completes what neighbours lack.

    For training, from what is not held out (``"set_aside"``): calibration must not know those entries by way of the neighbours.
    """
    first = model.module.first_round
    if first is None:
        return dataset
    predictor, n_obs = Predictor(first, dataset), len(dataset)
    # training looks at a bounded number of spots
    whole = hide == "set_aside" or fits_in_memory(n_obs, predictor.n_genes)
    prefill = predictor.completed(np.arange(n_obs), hide) if whole else CompletedRows(predictor)
    return dataset.with_fields(**{keys.PREFILL: prefill})


def predictor_of(
    model: BaseModelClass,
    dataset: NeighborhoodDataset,
    hide: Hide = "nothing",
    region_effects: bool = True,
    silent: bool = True,
) -> Predictor:
    """Predictor of a trained model for some data, with region effects if decoding follows.

    With ``hide="set_aside"`` it is as if nothing that training holds out were observed.
    """
    predictor = Predictor(model.module, model._data_for(dataset, hide))
    return (
        predictor.with_region_effects(_region_effects(model, predictor, hide, silent)) if region_effects else predictor
    )


def forget_region_effects(model: BaseModelClass) -> None:
    """Forget the region effects of the last data: the model has changed."""
    model._remembered_effects = None


def _region_effects(
    model: BaseModelClass, predictor: Predictor, hide: Hide, silent: bool
) -> EstimatedEffects | np.ndarray | None:
    """Region effects, remembered for the last data: users ask again and again."""
    if np.isinf(model.module.region_shrinkage.cpu().numpy()).all():
        return None
    asked = hide, predictor.dataset.fingerprint
    remembered = getattr(model, "_remembered_effects", None)
    if remembered is None or remembered[0] != asked:
        remembered = model._remembered_effects = asked, estimate_region_effects(predictor, hide, silent)
    return remembered[1]
