"""Training plans and the staged runner."""

from lgdist_scvi.train._plans import DiffusionPlan, StagePlan, VAEPlan
from lgdist_scvi.train._runner import EntrySplitter, run_stage

__all__ = ["DiffusionPlan", "EntrySplitter", "StagePlan", "VAEPlan", "run_stage"]
