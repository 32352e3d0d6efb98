"""Scores of a completion, of rates and of uncertainty; baselines to compare with."""

from lgdist_scvi.metrics import baselines
from lgdist_scvi.metrics._completion import completion_scores, variance_ratio
from lgdist_scvi.metrics._controls import negative_controls
from lgdist_scvi.metrics._copying import image_copying
from lgdist_scvi.metrics._harm import do_no_harm
from lgdist_scvi.metrics._image_distance import image_distance
from lgdist_scvi.metrics._patch_composition import patch_composition
from lgdist_scvi.metrics._poisson import (
    poisson_deviance_explained,
    poisson_floor,
    poisson_log_likelihood,
    poisson_variance_explained,
)
from lgdist_scvi.metrics._skill import skill_per_gene
from lgdist_scvi.metrics._uncertainty import crps, energy_score, interval_coverage

__all__ = [
    "baselines",
    "completion_scores",
    "crps",
    "do_no_harm",
    "energy_score",
    "image_copying",
    "image_distance",
    "interval_coverage",
    "negative_controls",
    "patch_composition",
    "poisson_deviance_explained",
    "poisson_floor",
    "poisson_log_likelihood",
    "poisson_variance_explained",
    "skill_per_gene",
    "variance_ratio",
]
