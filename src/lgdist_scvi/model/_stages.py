"""The two stages of LGDiST."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from scvi import settings

from lgdist_scvi import _keys as keys
from lgdist_scvi.module import LGDiSTModule
from lgdist_scvi.train import StagePlan

_N_SCALE_BATCHES = 8
_VALIDATION_SEED = 0

Batch = dict[str, torch.Tensor]


class VAEStage(StagePlan):
    """Stage 1: the neighbourhood VAE predicts hidden entries; the experts are fitted after it."""

    n_steps = 500

    def __init__(self, module: LGDiSTModule, stage: str = "vae", lr: float = 2e-3, weight_decay: float = 0.05):
        super().__init__(module, module.autoencoder, stage, lr, weight_decay)
        # experts correct what is predicted of spots of which something is visible
        self.finishing = f"experts{stage.removeprefix('vae')}" if module.own_entries else None

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Train the network on its own."""
        self.module.experts.in_use.fill_(False)
        if self.module.image is not None:
            self.module.image.reset()

    def finish(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Fit what the image adds and the experts, and choose their weights on set-aside entries."""
        self.module.eval()
        self.module.finish(batches, torch.Generator().manual_seed(settings.seed or 0))
        average, image = self.module.experts, self.module.image
        told = {}
        if image is not None:
            told["image"] = {"hidden": float(image.weight_hidden), "visible": float(image.weight_visible)}
        if not average.in_use:
            return told
        names = [expert.name for expert in average.experts]
        weights = {"weights_hidden": average.weights_hidden, "weights_visible": average.weights_visible}
        return told | {key: dict(zip(names, value.mean(1).tolist(), strict=True)) for key, value in weights.items()}

    def on_train_start(self) -> None:
        self.module.train()  # the module itself samples only then

    def training_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.module(batch, get_inference_input_kwargs={"hide": "random"})[2].loss

    def validation_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        # a visible count, whose own rate is asked for, is predicted differently from a hidden one
        cases = [
            {"hide": hide, "generator": torch.Generator(self.device).manual_seed(_VALIDATION_SEED + batch_idx)}
            for hide in self.module.likelihood.hold_outs
        ]
        n_obs = len(batch[keys.COUNTS])
        losses = [
            self.module(batch, get_inference_input_kwargs=case)[2].reconstruction_loss_sum / n_obs for case in cases
        ]
        return torch.stack(losses).mean()


class DiffusionStage(StagePlan):
    """Stage 2: the denoiser learns the distribution of the latent given what is visible; the VAE is frozen."""

    n_steps = 300

    def __init__(self, module: LGDiSTModule, stage: str = "diffusion", lr: float = 1e-3, weight_decay: float = 0.01):
        super().__init__(module, module.diffusion.denoiser, stage, lr, weight_decay)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Measure the scale of the residuals."""
        self.module.eval()
        device = self.module.diffusion.scale.device
        first = islice(batches, _N_SCALE_BATCHES)
        self.module.measure_residuals({key: value.to(device) for key, value in batch.items()} for batch in first)

    def finish(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Mark the diffusion as trained, so that predictions use it."""
        self.module.diffusion.trained.fill_(True)
        return {}

    def training_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        error, decoded = self.module.diffusion_loss(batch, "random")
        return error + self.module.config.decoded_weight * decoded

    def validation_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        # the same noise and timesteps every time, so that early stopping follows the network
        generator = torch.Generator(self.device).manual_seed(_VALIDATION_SEED + batch_idx)
        error, decoded = self.module.diffusion_loss(batch, "set_aside", generator)
        return error + self.module.config.decoded_weight * decoded
