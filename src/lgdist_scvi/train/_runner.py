"""Running one stage through scvi-tools' runner."""

from __future__ import annotations

import copy
import hashlib
import signal
import threading
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from scvi import settings
from scvi.dataloaders import DataSplitter
from scvi.model.base import BaseModelClass
from scvi.train import LoudEarlyStopping, TrainRunner
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lgdist_scvi.train._arguments import listed, loss_names
from lgdist_scvi.train._callbacks import Curves, KeepBest
from lgdist_scvi.train._plan import StagePlan
from lgdist_scvi.train._processes import Together, for_several, in_processes, share
from lgdist_scvi.train._quiet import quietly
from lgdist_scvi.train._splitter import EntrySplitter
from lgdist_scvi.train._steps import named_step

_N_VALIDATIONS = 25  # per stage
_PATIENCE = 6  # validations without improvement


def copies_for_stages(
    callbacks: Callback | Sequence[Callback] | None, stages: Sequence[str], shared: Iterable[Any] = ()
) -> list[list[Callback]]:
    """Copy the caller's callbacks once for each stage, since what one stage left in them would mislead the next.

    A callback that monitors the loss of one stage by its full name takes no part in the others. Copies refer to what is
    `shared`, such as the model, instead of copying it. A callback that cannot be copied is refused (TypeError).
    """
    given, copies = listed(callbacks), []
    for stage in stages:
        memo = {id(one): one for one in shared}
        copies.append(
            [_copied(one, memo) for one in given if _takes_part(getattr(one, "monitor", None), stage, stages)]
        )
    return copies


def _copied(callback: Callback, memo: dict[int, Any]) -> Callback:
    try:
        return copy.deepcopy(callback, memo)
    except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, copy.Error) as error:
        raise TypeError(
            f"the callback {type(callback).__name__} cannot be copied ({error}), and every stage trains with a copy of its own; "
            "give it a __deepcopy__ that returns self to share it between stages"
        ) from error


def _takes_part(monitor: Any, stage: str, stages: Sequence[str]) -> bool:
    """Whether what monitors a metric does so in this stage: not if the metric is the loss of another one."""
    return monitor in loss_names([stage]) or monitor not in loss_names(stages)


def run_stage(
    model: BaseModelClass,
    plan: StagePlan,
    splitter: DataSplitter,
    max_epochs: int,
    ema_decay: float | None,
    callbacks: Sequence[Callback] = (),
    stages: Sequence[str] = (),
    **trainer_kwargs: Any,
) -> bool:
    """Train one stage, and add its history to `model.history_` under ``"{stage}/..."``.

    Parameters
    ----------
    model
        The model; its module is trained in place.
    plan, splitter
        What a step does, and the data.
    max_epochs
        Number of passes over the training spots.
    ema_decay
        Decay of the moving average of the weights, which replaces them at the end; ``None`` for no average.
    callbacks
        Lightning callbacks for this stage alone, see :func:`copies_for_stages`. They are in ``model.trainer.callbacks``
        after.
    stages
        Names of all stages of this training.
    **trainer_kwargs
        For :class:`scvi.train.TrainRunner` and :class:`scvi.train.Trainer`.

    Returns
    -------
    False if the user interrupted the stage. Either way the weights with the lowest validation loss are kept. With several
    processes an interruption is not caught: it ends all of them.
    """
    best, curves, parallel = KeepBest(), Curves(), in_processes(trainer_kwargs)
    ours, last = [best, curves], []
    if parallel:
        ours.insert(0, Together(_given(model, plan, splitter)))
        trainer_kwargs = for_several(trainer_kwargs)
    if ema_decay is not None:
        # all parameters at once: one by one takes longer
        ours.append(WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)))
    if trainer_kwargs.get("check_val_every_n_epoch") is None:
        trainer_kwargs["check_val_every_n_epoch"] = max(1, max_epochs // _N_VALIDATIONS)
    monitor = trainer_kwargs.get("early_stopping_monitor") or "validation_loss"
    if trainer_kwargs.pop("early_stopping", False) and _takes_part(monitor, plan.stage, stages):
        n_validations = max_epochs // trainer_kwargs["check_val_every_n_epoch"]
        # scvi-tools' trainer would leave it out with several processes
        stopping = LoudEarlyStopping(
            monitor=monitor,
            min_delta=trainer_kwargs.get("early_stopping_min_delta", 0.0),
            patience=trainer_kwargs.get("early_stopping_patience", _PATIENCE),
            mode=trainer_kwargs.get("early_stopping_mode", "min"),
            # while the learning rate is high the loss wanders; scvi-tools counts validations, not epochs
            warmup_epochs=trainer_kwargs.get("early_stopping_warmup_epochs", n_validations // 2),
        )
        last.append(stopping)
    show = trainer_kwargs.get("enable_progress_bar", True)

    previous, was_trained = model.history_ or {}, model.is_trained_
    # what is saved within a stage is not trained
    model.is_trained_ = False
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    frozen = [parameter for parameter in plan.module.parameters() if not parameter.requires_grad]
    completed = True
    try:
        with quietly():
            splitter.setup("fit")
            plan.prepare(splitter.train_dataloader())
            plan.module.requires_grad_(False)
            plan.network.requires_grad_(True)
            runner = TrainRunner(
                model,
                training_plan=plan,
                data_splitter=splitter,
                max_epochs=max_epochs,
                callbacks=[*callbacks, *ours, *last],
                **trainer_kwargs,
            )
            if parallel:
                runner.device = runner.trainer.strategy.root_device  # scvi-tools would take the first for all
            with torch.random.fork_rng(devices=[], enabled=parallel):
                runner()
    except KeyboardInterrupt:
        if parallel:
            raise
        completed = False
    except SystemExit as request:
        # Lightning turns Ctrl-C into an exit and leaves further ones ignored; other exits (SIGTERM) are meant
        if parallel or not isinstance(request.__context__, KeyboardInterrupt):
            raise  # of several processes, it has ended the others
        completed = False
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        best.restore(plan.network)
        if getattr(model, "trainer", None) is not None:
            # they hold weights, and what cannot be pickled
            model.trainer.callbacks = [one for one in model.trainer.callbacks if one not in ours]
        plan.module.requires_grad_(True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        plan.module.eval()
        model.is_trained_ = was_trained or plan.global_step > 0
        model.history_ = {**previous, **{f"{plan.stage}/{name}": frame for name, frame in curves.frames().items()}}
    if not completed:
        _warn_of_interruption(plan.stage)
    if plan.global_step > 0:
        try:
            step = named_step(model, plan.finishing, show) if plan.finishing else nullcontext({})
            with step as report:
                report |= plan.finish(splitter.train_dataloader())
        except KeyboardInterrupt:
            if parallel:
                raise
            completed = False
            _warn_of_interruption(plan.stage)
    if parallel:
        share(plan.module, model.trainer.strategy)
    return completed


def _given(model: BaseModelClass, plan: StagePlan, splitter: EntrySplitter) -> tuple[str | None, ...]:
    """Hashes of the data, of the spots that train and validate, and of the entries that are held out from training."""
    patterns = getattr(plan.module, "set_aside_patterns", None)
    entries = None if patterns is None else hashlib.sha256(patterns.cpu().numpy()).hexdigest()
    return getattr(model.adata_manager, "fingerprint", None), splitter.fingerprint, entries


def _warn_of_interruption(stage: str) -> None:
    warnings.warn(
        f"Training was interrupted in stage {stage!r}; the model keeps the best weights it had so far and can be used.",
        stacklevel=settings.warnings_stacklevel + 1,
    )
