"""Experts: predictors beside the network, averaged with it."""

from __future__ import annotations

from lgdist_scvi.module.experts._averaging import ExpertAverage, HeldOutBatch, best_weights, correction
from lgdist_scvi.module.experts._base import Expert, ExpertSizes, TrainingSpots
from lgdist_scvi.module.experts._factor_analysis import FactorAnalysis, fit_factors
from lgdist_scvi.module.experts._gamma_poisson import GammaPoisson, GammaPoissonExpert
from lgdist_scvi.module.experts._gamma_poisson_captured import CapturedGammaPoisson, CapturedGammaPoissonExpert
from lgdist_scvi.module.likelihood import Estimand

__all__ = [
    "EXPERTS",
    "CapturedGammaPoisson",
    "CapturedGammaPoissonExpert",
    "Expert",
    "ExpertAverage",
    "ExpertSizes",
    "FactorAnalysis",
    "GammaPoisson",
    "GammaPoissonExpert",
    "HeldOutBatch",
    "TrainingSpots",
    "best_weights",
    "correction",
    "fit_factors",
]

# by what they predict
EXPERTS: dict[Estimand, list[type[Expert]]] = {
    "rate": [GammaPoissonExpert, FactorAnalysis],
    "captured": [CapturedGammaPoissonExpert],
}
