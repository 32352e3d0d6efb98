"""C2L-ST: tissue patches by diffusion, and their modulation by expression."""

from __future__ import annotations

from lgdist_scvi.module.c2lst._condition import ExpressionScores
from lgdist_scvi.module.c2lst._images import MAX_FOLD, fold_of, from_network, new_unet, to_network
from lgdist_scvi.module.c2lst._module import C2LSTModule
from lgdist_scvi.module.c2lst._noise import new_scheduler, sample
from lgdist_scvi.module.c2lst._pretraining import Pretraining, pretrain

__all__ = [
    "MAX_FOLD",
    "C2LSTModule",
    "ExpressionScores",
    "Pretraining",
    "fold_of",
    "from_network",
    "new_scheduler",
    "new_unet",
    "pretrain",
    "sample",
    "to_network",
]
