"""Training in stages, for any module and any model of scvi-tools."""

from lgdist_scvi.train._arguments import check_trainer_arguments, listed, refuse_unknown
from lgdist_scvi.train._plan import StagePlan
from lgdist_scvi.train._processes import in_processes, share
from lgdist_scvi.train._quiet import quietly
from lgdist_scvi.train._runner import copies_for_stages, run_stage
from lgdist_scvi.train._splitter import EntrySplitter
from lgdist_scvi.train._steps import named_step

__all__ = [
    "EntrySplitter",
    "StagePlan",
    "check_trainer_arguments",
    "copies_for_stages",
    "in_processes",
    "listed",
    "named_step",
    "quietly",
    "refuse_unknown",
    "run_stage",
    "share",
]
