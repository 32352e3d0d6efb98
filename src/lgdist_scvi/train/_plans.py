"""Training plans: what one optimisation step of each stage does."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import lightning.pytorch as lightning
import torch
from scvi import settings

from lgdist_scvi.module import LGDiSTModule, fit_experts

_N_SCALE_BATCHES = 8
_VALIDATION_SEED = 0


class StagePlan(lightning.LightningModule):
    """AdamW under a one-cycle learning rate.

    Parameters
    ----------
    module
        The module.
    network
        The part of it that the stage trains.
    lr
        Highest learning rate.
    weight_decay
        Of AdamW.
    """

    def __init__(self, module: LGDiSTModule, network: torch.nn.Module, lr: float, weight_decay: float):
        super().__init__()
        self.module = module
        self.network = network
        self.lr = lr
        self.weight_decay = weight_decay

    def prepare(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Set what the stage needs to know of the data, before anything copies the module to average its weights."""

    def finish(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Set what follows from the trained network."""

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.98), fused=True
        )
        # a warm-up of exactly one step, as a tenth of 10 is, makes torch divide by zero
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=max(2, int(self.trainer.estimated_stepping_batches)), pct_start=0.11
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_validation_epoch_start(self) -> None:
        self.validation_losses: list[tuple[float, int]] = []

    def _score(self, loss: torch.Tensor, n_obs: int) -> None:
        self.validation_losses.append((float(loss), n_obs))
        self._log({"validation_loss": loss}, n_obs)

    def _log(self, values: dict[str, torch.Tensor], n_obs: int) -> None:
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=n_obs, prog_bar=True)


class VAEPlan(StagePlan):
    """Stage 1: the neighbourhood VAE predicts hidden entries."""

    def __init__(self, module: LGDiSTModule, lr: float = 2e-3, weight_decay: float = 0.05):
        super().__init__(module, module.autoencoder, lr, weight_decay)

    def prepare(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """The network learns on its own."""
        self.module.experts.in_use.fill_(False)

    def finish(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Let the experts learn, and give them their say."""
        self.module.eval()
        fit_experts(self.module, batches, torch.Generator().manual_seed(settings.seed or 0))

    def on_train_start(self) -> None:
        # scvi-tools leaves the module in eval mode after a stage, and Lightning does not switch it back
        self.module.train()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        _, _, output = self.module(batch, get_inference_input_kwargs={"hide": "random"})
        self._log({"train_loss": output.loss}, len(batch["X"]))
        return output.loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        n_obs = len(batch["X"])
        cases = [{"hide": "set_aside"}]
        if "split" in self.module.likelihood.hold_outs:
            # a visible count, whose own rate is asked for, is a question of its own
            generator = torch.Generator(self.device).manual_seed(_VALIDATION_SEED + batch_idx)
            cases.append({"hide": "split", "generator": generator})
        losses = [
            self.module(batch, get_inference_input_kwargs=case)[2].reconstruction_loss_sum / n_obs for case in cases
        ]
        self._score(torch.stack(losses).mean(), n_obs)


class DiffusionPlan(StagePlan):
    """Stage 2: the denoiser learns the distribution of the latent given what is visible; the VAE is frozen."""

    def __init__(self, module: LGDiSTModule, lr: float = 1e-3, weight_decay: float = 0.01):
        super().__init__(module, module.diffusion.denoiser, lr, weight_decay)

    def prepare(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Measure the scale of the residuals."""
        self.module.eval()
        device = self.module.diffusion.scale.device
        first = islice(batches, _N_SCALE_BATCHES)
        self.module.measure_residuals({key: value.to(device) for key, value in batch.items()} for batch in first)

    def finish(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Let the denoiser have its say."""
        self.module.diffusion.trained.fill_(True)

    def on_fit_start(self) -> None:
        self.module.autoencoder.requires_grad_(False)

    def on_train_start(self) -> None:
        self.module.autoencoder.eval()
        self.module.diffusion.train()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        error, decoded = self.module.diffusion_loss(batch, "random")
        loss = error + self.module.config.decoded_weight * decoded
        self._log({"train_loss": loss}, len(batch["X"]))
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        # the same noise and timesteps every time, so that early stopping follows the network
        generator = torch.Generator(self.device).manual_seed(_VALIDATION_SEED + batch_idx)
        error, decoded = self.module.diffusion_loss(batch, "set_aside", generator)
        loss = error + self.module.config.decoded_weight * decoded
        self._score(loss, len(batch["X"]))
