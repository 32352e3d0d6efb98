"""Figures from AnnData and scores. Each function returns its figure."""

from lgdist_scvi.pl._controls import negative_controls
from lgdist_scvi.pl._generated import generated
from lgdist_scvi.pl._images import image_patches
from lgdist_scvi.pl._prediction import prediction
from lgdist_scvi.pl._quality import calibration, skill
from lgdist_scvi.pl._scores import held_out, scores
from lgdist_scvi.pl._tissue import completion
from lgdist_scvi.pl._training import training_history

__all__ = [
    "calibration",
    "completion",
    "generated",
    "held_out",
    "image_patches",
    "negative_controls",
    "prediction",
    "scores",
    "skill",
    "training_history",
]
