"""From a module's output to numbers with an error; knows no AnnData and no model."""

from lgdist_scvi.inference._calibration import Calibration, fit_calibration, fit_noise
from lgdist_scvi.inference._compact import fits_in_memory, spots_at_a_time
from lgdist_scvi.inference._conformal import (
    LEVELS,
    REPORTED_LEVELS,
    conformal_quantiles,
    expression_strata,
    fit_intervals,
    nested_strata,
)
from lgdist_scvi.inference._entry_kinds import ENTRY_KINDS, CalibrationCase, EntryKind, HeldOutSpots, hidden_cases
from lgdist_scvi.inference._holes import holes
from lgdist_scvi.inference._parts import CompletedRows
from lgdist_scvi.inference._prediction import (
    FILLED_MISSING,
    FILLED_ZERO,
    LEFT_MISSING,
    MEASURED,
    N_SAMPLES,
    REPLACED,
    SAMPLER_STEPS,
    Prediction,
    in_log1p,
    measured,
    provenance,
)
from lgdist_scvi.inference._predictor import Predictor
from lgdist_scvi.inference._region_effects import (
    EstimatedEffects,
    HeldOutEntries,
    RegionEffects,
    choose_shrinkage,
    estimate_region_effects,
    fit_region_effects,
)
from lgdist_scvi.inference._region_evidence import KeptEvidence, StreamedEvidence
from lgdist_scvi.inference._skill import measure_skill

__all__ = [
    "ENTRY_KINDS",
    "FILLED_MISSING",
    "FILLED_ZERO",
    "LEFT_MISSING",
    "LEVELS",
    "MEASURED",
    "N_SAMPLES",
    "SAMPLER_STEPS",
    "REPLACED",
    "REPORTED_LEVELS",
    "Calibration",
    "CalibrationCase",
    "CompletedRows",
    "EntryKind",
    "EstimatedEffects",
    "HeldOutEntries",
    "HeldOutSpots",
    "KeptEvidence",
    "Prediction",
    "Predictor",
    "RegionEffects",
    "StreamedEvidence",
    "fit_intervals",
    "choose_shrinkage",
    "conformal_quantiles",
    "estimate_region_effects",
    "expression_strata",
    "fit_calibration",
    "fit_noise",
    "fit_region_effects",
    "fits_in_memory",
    "hidden_cases",
    "holes",
    "in_log1p",
    "measure_skill",
    "measured",
    "nested_strata",
    "provenance",
    "spots_at_a_time",
]
