"""From a module's output to numbers with an error; knows no AnnData and no model."""

from __future__ import annotations

from lgdist_scvi.inference._calibration import Calibration, fit_calibration, fit_noise
from lgdist_scvi.inference._cases import ENTRY_KINDS, CalibrationCase, EntryKind, HeldOutSpots, hidden_cases
from lgdist_scvi.inference._conformal import LEVELS, REPORTED_LEVELS
from lgdist_scvi.inference._prediction import (
    FILLED_MISSING,
    FILLED_ZERO,
    LEFT_MISSING,
    MEASURED,
    N_SAMPLES,
    REPLACED,
    Prediction,
    in_log1p,
    measured,
    provenance,
)
from lgdist_scvi.inference._predictor import Predictor
from lgdist_scvi.inference._region_effects import RegionEffects, estimate_region_effects, fit_region_effects
from lgdist_scvi.inference._skill import measure_skill

__all__ = [
    "ENTRY_KINDS",
    "FILLED_MISSING",
    "FILLED_ZERO",
    "LEFT_MISSING",
    "LEVELS",
    "MEASURED",
    "N_SAMPLES",
    "REPLACED",
    "REPORTED_LEVELS",
    "Calibration",
    "CalibrationCase",
    "EntryKind",
    "HeldOutSpots",
    "Prediction",
    "Predictor",
    "RegionEffects",
    "estimate_region_effects",
    "fit_calibration",
    "fit_noise",
    "fit_region_effects",
    "hidden_cases",
    "in_log1p",
    "measure_skill",
    "measured",
    "provenance",
]
