"""What the models of this package share."""

from lgdist_scvi.model.base._calibration import SkillMixin
from lgdist_scvi.model.base._completion import CompletionMixin
from lgdist_scvi.model.base._estimate import EstimateMixin
from lgdist_scvi.model.base._expression import ExpressionMixin
from lgdist_scvi.model.base._record import random_state
from lgdist_scvi.model.base._repeat import RecordMixin
from lgdist_scvi.model.base._training import TrainingMixin

__all__ = [
    "CompletionMixin",
    "EstimateMixin",
    "ExpressionMixin",
    "RecordMixin",
    "SkillMixin",
    "TrainingMixin",
    "random_state",
]
