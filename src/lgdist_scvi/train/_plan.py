"""What one optimisation step of a stage does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as lightning
import torch
from scvi import REGISTRY_KEYS

Batch = dict[str, torch.Tensor]


class StagePlan(lightning.LightningModule):
    """One stage of training: AdamW under a one-cycle learning rate, on one part of a module.

    A subclass gives :meth:`training_loss` and :meth:`validation_loss`, and may set things before and after. Losses are
    logged as ``"{stage}_train_loss"`` and ``"{stage}_validation_loss"``; callbacks find them as ``"train_loss"`` and
    ``"validation_loss"`` too, in every stage.

    Parameters
    ----------
    module, network
        The module, and the part of it that the stage trains; the rest is frozen.
    stage
        Name of the stage.
    lr, weight_decay
        Highest learning rate, positive, and weight decay of AdamW, at least 0 (else ValueError).
    """

    n_steps: int = 500
    """Optimisation steps that a slide needs."""

    finishing: str | None = None
    """Name of the step that :meth:`finish` is, where it is one that a user should know of."""

    def __init__(self, module: torch.nn.Module, network: torch.nn.Module, stage: str, lr: float, weight_decay: float):
        super().__init__()
        if not isinstance(lr, int | float) or not 0 < lr < float("inf"):
            raise ValueError(f"lr must be a positive number, got {lr!r}")
        if not isinstance(weight_decay, int | float) or not 0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be a number of at least 0, got {weight_decay!r}")
        self.module = module
        self.network = network
        self.stage = stage
        self.lr = lr
        self.weight_decay = weight_decay

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set what the stage needs to know of the data, before anything copies the module to average its weights."""

    def finish(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """Set what follows from the trained network, and return what there is to tell of it."""
        return {}

    def training_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss to minimise, a scalar."""
        raise NotImplementedError

    def validation_loss(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss to judge by, a scalar; the same for the same weights."""
        raise NotImplementedError

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.98), fused=True
        )
        # a warm-up of exactly one step, as a tenth of 10 is, makes torch divide by zero
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=max(2, int(self.trainer.estimated_stepping_batches)), pct_start=0.11
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        # scvi-tools leaves the module in eval mode after a stage, and Lightning does not switch it back
        self.module.eval()
        self.network.train()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = self.training_loss(batch, batch_idx)
        self._report("train_loss", loss, batch)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._report("validation_loss", self.validation_loss(batch, batch_idx), batch)

    def _report(self, name: str, loss: torch.Tensor, batch: Batch) -> None:
        kwargs = {"on_step": False, "on_epoch": True, "batch_size": len(batch[REGISTRY_KEYS.X_KEY])}
        kwargs["sync_dist"] = self.trainer.world_size > 1  # all processes stop by the same loss
        # the curves of two stages must not be one in a logger; callbacks monitor the plain name
        self.log(f"{self.stage}_{name}", loss, prog_bar=True, **kwargs)
        self.log(name, loss, logger=False, **kwargs)
