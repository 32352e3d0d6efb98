"""Callbacks of every stage."""

from __future__ import annotations

import pandas as pd
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from lgdist_scvi.train._plan import StagePlan


class KeepBest(Callback):
    """Remember the weights of the stage's network at the lowest validation loss.

    Comes before the callback that averages weights: at the end of a validation the averaged ones are still in place.
    """

    def __init__(self) -> None:
        self.loss, self.state = float("inf"), None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: StagePlan) -> None:
        if trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.loss:
            self.loss = loss
            self.state = {name: value.detach().clone() for name, value in pl_module.network.state_dict().items()}

    def restore(self, network: torch.nn.Module) -> None:
        """Put the remembered weights back, if there are any."""
        if self.state is not None:
            network.load_state_dict(self.state)


class Curves(Callback):
    """Record what is logged, whatever the logger: metrics of validation where one took place, others in every epoch."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}
        self._of_validation: set[str] = set()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: StagePlan) -> None:
        if trainer.sanity_checking:
            return
        # metrics of training come first at the end of an epoch, which is later
        names = set(trainer.callback_metrics) - (set(self.values) - self._of_validation)
        self._of_validation |= names
        self._record(trainer, pl_module, names)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: StagePlan) -> None:
        self._record(trainer, pl_module, set(trainer.callback_metrics) - self._of_validation)

    def _record(self, trainer: Trainer, plan: StagePlan, names: set[str]) -> None:
        for name in sorted(names):
            if not name.startswith(f"{plan.stage}_"):  # the same again, under the name for loggers
                self.values.setdefault(name, {})[trainer.current_epoch] = float(trainer.callback_metrics[name])

    def frames(self) -> dict[str, pd.DataFrame]:
        """One frame of a column per metric, by epoch."""
        return {
            name: pd.DataFrame({name: list(values.values())}, index=pd.Index(list(values), name="epoch"))
            for name, values in self.values.items()
        }
