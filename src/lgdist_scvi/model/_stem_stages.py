"""The stages of Stem: networks and diffusion, or in gene space the diffusion alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from scvi import settings

from lgdist_scvi import _keys as keys
from lgdist_scvi.model._stages import DiffusionStage
from lgdist_scvi.module import GeneStemModule, StemModule
from lgdist_scvi.module.stem import choose_synthetic_weight, with_synthetic
from lgdist_scvi.train import StagePlan

Batch = dict[str, torch.Tensor]


class NetworkStage(StagePlan):
    """Stage 1: each network learns rates of all slides but one part, and is judged by the counts of that; the expert is fitted after."""

    n_steps = 400
    finishing = "experts"

    def __init__(self, module: StemModule, stage: str = "network", lr: float = 2e-3, weight_decay: float = 0.1):
        super().__init__(module, module.networks, stage, lr, weight_decay)
        self.told: dict[str, Any] = {}

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Train the networks on their own."""
        self.module.experts.in_use.fill_(False)
        self.module.trust.fill_(1.0)
        self.module.synthetic_weight.fill_(0.0)
        with torch.random.fork_rng(devices=[]):  # where generated patches have no weight, training is that without them
            if keys.SYNTHETIC in next(iter(batches)):
                self.told["synthetic"] = choose_synthetic_weight(self.module, batches, settings.seed or 0)

    def finish(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Fit the expert, and choose its weight on slides that were not seen."""
        self.module.eval()
        self.module.fit_experts(batches, torch.Generator().manual_seed(settings.seed or 0))
        average = self.module.experts
        names = [type(expert).__name__ for expert in average.experts]
        weights = dict(zip(names, average.weights_hidden.mean(1).tolist(), strict=True))
        return {"weights_hidden": weights, "trust": float(self.module.trust), **self.told}

    def on_train_start(self) -> None:
        self.module.train()  # the module itself tells training from validation by it

    def training_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = self.module(batch)[2].loss
        if self.module.synthetic_weight > 0:
            other, share = with_synthetic(batch)
            loss = loss + self.module.synthetic_weight * share * self.module(other)[2].loss
        return loss

    def validation_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.module(batch)[2].loss


class ResidualStage(DiffusionStage):
    """Stage 2: the denoiser learns what the latent differs by from means of networks that did not see the slide."""

    finishing = "samples"

    def finish(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Use the diffusion, as far as counts of an unseen slide say."""
        super().finish(batches)
        self.module.eval()
        self.module.settle(batches, torch.Generator().manual_seed(settings.seed or 0))
        return {"pull": float(self.module.pull)}


class GeneStage(ResidualStage):
    """The only stage in gene space: the denoiser learns all that the image says."""

    n_steps = 2000

    def __init__(self, module: GeneStemModule, stage: str = "diffusion", lr: float = 5e-4, weight_decay: float = 0.01):
        super().__init__(module, stage, lr, weight_decay)


STAGES = {"latent": {"network": NetworkStage, "diffusion": ResidualStage}, "genes": {"diffusion": GeneStage}}
