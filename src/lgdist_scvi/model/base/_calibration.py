"""What follows the training of the networks: region effects, noise, intervals and skill, from held-out entries."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np
import pandas as pd
import torch
from scvi import settings
from scvi.model.base import BaseModelClass

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_choice
from lgdist_scvi.data import NeighborhoodDataset
from lgdist_scvi.inference import (
    REPORTED_LEVELS,
    Calibration,
    HeldOutSpots,
    Predictor,
    fit_calibration,
    fit_noise,
    fit_region_effects,
    measure_skill,
)
from lgdist_scvi.model.base._predictor import forget_region_effects, predictor_of
from lgdist_scvi.module.likelihood import Estimand
from lgdist_scvi.train import EntrySplitter, named_step


@torch.inference_mode()
def calibrate(model: BaseModelClass, data: NeighborhoodDataset, show: bool = False) -> Calibration:
    """Fit region effects and noise, calibrate intervals and standard deviations, and measure skill.

    `model` has trained networks, and `data` are what they were trained on, or more; `show` gives every step a progress line.
    """
    data = data.for_calibration
    module, step = model.module, partial(named_step, model, show=show)
    module.eval()
    forget_region_effects(model)
    predictor = Predictor(module, model._data_for(data, "set_aside"))
    with step("region_effects") as report:
        effects = fit_region_effects(predictor)
        if effects is not None:
            predictor = predictor.with_region_effects(effects.estimate(module.region_shrinkage.cpu().numpy()))
        report["shrinkage"] = dict(zip(("slide", "surroundings"), module.region_shrinkage.tolist(), strict=True))
    spots = HeldOutSpots.choose(predictor, effects)
    with step("noise") as report:
        report["factor"] = fit_noise(spots)
    with step("intervals") as report:
        calibration = fit_calibration(spots)
        report["std_factors"] = calibration.std_factors
        for estimand, coverage in calibration.hidden.coverage.items():
            report[f"coverage_{estimand}"] = dict(zip(map(str, REPORTED_LEVELS), coverage[:, 0].tolist(), strict=True))
    with step("skill") as report:
        calibration.skill = measure_skill(predictor)
        report["share_skilled"] = {
            estimand: float((table["skill"] > 0).mean()) for estimand, table in calibration.skill.items()
        }
    return calibration


def calibration_of(model: BaseModelClass) -> Calibration:
    """Calibration of a trained model; what an interruption kept the training from is done now.

    Refused (ValueError) if the model is not trained, or lacks the calibration and the data for it.
    """
    if not model.is_trained_:
        raise ValueError("the model is not trained yet; call model.train() first")
    if model.calibration_ is None:
        if model.adata is None:
            raise ValueError(
                "training was interrupted before intervals were calibrated; load the model with the data it was trained on"
            )
        data = model.adata_manager.create_torch_dataset()
        _finish_networks(model, data)
        model.calibration_ = calibrate(model, data)  # whole or not at all: Ctrl-C may come at any time
    return model.calibration_


def _finish_networks(model: BaseModelClass, data: NeighborhoodDataset) -> None:
    """Fit what an interruption kept the stages of the training from fitting."""
    if model.module.is_finished():
        return
    given = model._data_for(data.for_training, "set_aside")
    splitter = EntrySplitter(given, model.module.spots_set_aside(len(given)), seed=settings.seed or 0)
    with named_step(model, "experts"):
        model.module.finish(splitter.train_dataloader(), torch.Generator().manual_seed(settings.seed or 0))


class SkillMixin:
    """Skill on held-out entries of the training data."""

    calibration_: Calibration | None = None

    def skill_table(self, estimand: Estimand | None = None, neighbors_only: bool = False) -> pd.DataFrame:
        """Compare with cheap baselines on held-out entries; see :func:`lgdist_scvi.metrics.skill_per_gene`.

        Parameters
        ----------
        estimand
            ``"rate"`` or ``"captured"``; ``None``: what the likelihood offers, rate first.
        neighbors_only
            Whether to hide all of a spot's own entries from the model, so that it knows the neighbours alone.

        Returns
        -------
        One row per registered gene: `n`, `mse_model`, `mse_baseline`, `baseline`, `skill`, `skill_se`, and the mean squared
        error of every baseline under ``"mse: <name>"``.

        Raises
        ------
        ValueError
            If the model is not trained, or its likelihood does not offer the estimand.
        """
        measured, estimand = calibration_of(self).skill, resolve_estimand(self, estimand)
        if neighbors_only:
            if self.adata is None:
                raise ValueError("skill is measured on the data that the model was trained on; load it with them")
            dataset = self.adata_manager.create_torch_dataset().for_calibration
            measured = measure_skill(predictor_of(self, dataset, "set_aside"), neighbors_only=True)
        genes = np.asarray(self.registry_["field_registries"][keys.COUNTS]["state_registry"]["column_names"])
        return pd.DataFrame(measured[estimand], index=pd.Index(genes, name="gene"))


def resolve_estimand(model: BaseModelClass, estimand: Estimand | None) -> Estimand:
    """What the likelihood models, or what is asked for; refused (ValueError) if the likelihood does not offer it."""
    offered = model.module.likelihood.estimands
    if estimand is None:
        return offered[0]
    check_choice("estimand", estimand, get_args(Estimand))
    if estimand not in offered:
        raise ValueError(
            f"estimand={estimand!r} needs a model of counts, but this one saw captured values only (its mask calls every zero "
            f"missing); ask for {offered[0]!r}, or register without such a mask"
        )
    return estimand
