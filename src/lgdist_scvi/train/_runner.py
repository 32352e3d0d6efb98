"""Running the stages one after the other through scvi-tools' runner."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from scvi import settings
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from scvi.model.base import BaseModelClass
from scvi.train import TrainRunner

from lgdist_scvi.train._plans import StagePlan

_N_VALIDATION_SPOTS = 1024
_N_VALIDATIONS = 25  # per stage
_PATIENCE = 6  # validations without improvement


class EntrySplitter(DataSplitter):
    """Trains on all spots but those set aside whole, and validates on set-aside entries of some of them.

    Spots of the held-out slides, if any, are not trained on at all, and validate.

    Parameters
    ----------
    adata_manager
        Manager with registered data.
    set_aside
        Rows of the spots that are set aside whole.
    validation_spots
        Rows of the spots that are not trained on; ``None`` if all are.
    seed
        Of the choice of validation spots.
    **kwargs
        For the data loader.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        set_aside: np.ndarray,
        validation_spots: np.ndarray | None = None,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(adata_manager, train_size=1.0, **kwargs)
        spots = np.setdiff1d(np.arange(adata_manager.adata.n_obs), set_aside)
        candidates = spots if validation_spots is None else np.intersect1d(validation_spots, spots)
        chosen = np.random.default_rng(seed).permutation(candidates)[:_N_VALIDATION_SPOTS]
        self.train_idx = spots if validation_spots is None else np.setdiff1d(spots, candidates)
        self.val_idx = np.sort(chosen)
        self.test_idx = np.array([], dtype=int)
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)

    def setup(self, stage: str | None = None) -> None:
        """Nothing to do: the split is made on construction."""


class KeepBest(Callback):
    """Remember the weights of the stage's network at the lowest validation loss.

    Comes before the callback that averages weights: at the end of a validation the averaged ones are still in place.
    """

    def __init__(self) -> None:
        self.loss, self.state = float("inf"), None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: StagePlan) -> None:
        losses, n_obs = np.array(pl_module.validation_losses).T
        loss = float(np.average(losses, weights=n_obs))
        if loss < self.loss:
            self.loss = loss
            self.state = {name: value.detach().clone() for name, value in pl_module.network.state_dict().items()}

    def restore(self, network: torch.nn.Module) -> None:
        """Put the remembered weights back, if there are any."""
        if self.state is not None:
            network.load_state_dict(self.state)


def run_stage(
    model: BaseModelClass,
    name: str,
    plan: StagePlan,
    splitter: EntrySplitter,
    max_epochs: int,
    ema_decay: float | None,
    callbacks: Sequence[Any] = (),
    **trainer_kwargs: Any,
) -> bool:
    """Train one stage, and add its history to `model.history_` under ``"{name}/..."``.

    Parameters
    ----------
    model
        The model; its module is trained in place.
    name
        Name of the stage.
    plan
        What a step does.
    splitter
        The data.
    max_epochs
        Number of passes over the training spots.
    ema_decay
        Decay of the moving average of the weights, which replaces them at the end; ``None`` for no average.
    callbacks
        Lightning callbacks of the caller; the sequence is not modified.
    **trainer_kwargs
        For :class:`scvi.train.TrainRunner` and :class:`scvi.train.Trainer`.

    Returns
    -------
    False if the user interrupted the stage. Either way the weights with the lowest validation loss are kept.
    """
    best = KeepBest()
    ours = [best]
    if ema_decay is not None:
        ours.append(EMAWeightAveraging(use_buffers=False, decay=ema_decay))
    if trainer_kwargs.get("check_val_every_n_epoch") is None:
        trainer_kwargs["check_val_every_n_epoch"] = max(1, max_epochs // _N_VALIDATIONS)
    if trainer_kwargs.get("early_stopping"):
        trainer_kwargs.setdefault("early_stopping_monitor", "validation_loss")
        trainer_kwargs.setdefault("early_stopping_patience", _PATIENCE)
        # while the learning rate is high the loss wanders; scvi-tools counts validations, not epochs
        n_validations = max_epochs // trainer_kwargs["check_val_every_n_epoch"]
        trainer_kwargs.setdefault("early_stopping_warmup_epochs", n_validations // 2)

    previous, was_trained = model.history_ or {}, model.is_trained_
    # scvi-tools glues the history of a trained model to the new one; stages are kept apart instead
    model.is_trained_, model.history_ = False, None
    handler = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    completed = True
    try:
        plan.prepare(splitter.train_dataloader())
        TrainRunner(
            model,
            training_plan=plan,
            data_splitter=splitter,
            max_epochs=max_epochs,
            callbacks=[*callbacks, *ours],
            **trainer_kwargs,
        )()
    except KeyboardInterrupt:
        completed = False
    except SystemExit as request:
        # Lightning turns Ctrl-C into an exit and leaves further ones ignored; other exits (SIGTERM) are meant
        if not isinstance(request.__context__, KeyboardInterrupt):
            raise
        completed = False
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        best.restore(plan.network)
        if getattr(model, "trainer", None) is not None:
            # they hold weights, and what cannot be pickled
            model.trainer.callbacks = [one for one in model.trainer.callbacks if one not in ours]
        plan.module.requires_grad_(True)
        plan.module.eval()
        model.is_trained_ = was_trained or plan.global_step > 0
        model.history_ = {**previous, **_named(name, model.history_ or {})}
    if not completed:
        _warn_of_interruption(name)
    if plan.global_step > 0:
        try:
            plan.finish(splitter.train_dataloader())
        except KeyboardInterrupt:
            completed = False
            _warn_of_interruption(name)
    return completed


def _warn_of_interruption(stage: str) -> None:
    warnings.warn(
        f"Training was interrupted in stage {stage!r}; the model keeps the best weights it had so far and can be used.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel + 1,
    )


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _named(stage: str, history: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {f"{stage}/{key}": frame for key, frame in history.items()}
