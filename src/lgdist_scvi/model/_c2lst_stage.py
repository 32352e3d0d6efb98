"""The stage of C2LST, and which spots choose when it stops."""

from __future__ import annotations

import numpy as np
import torch
from scvi.dataloaders import DataSplitter

from lgdist_scvi.data import PatchPairs
from lgdist_scvi.module.c2lst import C2LSTModule
from lgdist_scvi.train import StagePlan

_VALIDATION_SEED = 0

Batch = dict[str, torch.Tensor]


class AdapterStage(StagePlan):
    """The adapter learns to take noise from patches, given their expression; the central network stays as it is."""

    n_steps = 600

    def __init__(self, module: C2LSTModule, stage: str = "adapter", lr: float = 1e-3, weight_decay: float = 0.01):
        super().__init__(module, module.modulation, stage, lr, weight_decay)

    def training_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.module.loss(batch)

    def validation_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        # the same noise for the same weights
        return self.module.loss(batch, torch.Generator().manual_seed(_VALIDATION_SEED + batch_idx))


def pair_splitter(pairs: PatchPairs, validation_size: float, batch_size: int, seed: int) -> DataSplitter:
    """Let a random share of the pairs validate, at least one, and the others train."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    n_validation = max(1, round(validation_size * len(pairs)))
    rows = [np.sort(order[n_validation:]), np.sort(order[:n_validation]), np.array([], dtype=int)]
    return DataSplitter(pairs, external_indexing=rows, batch_size=batch_size)
