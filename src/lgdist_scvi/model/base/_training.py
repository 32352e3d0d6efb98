"""Training of the model: stages, rounds, and the steps that follow them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from scvi import settings

from lgdist_scvi import _keys as keys
from lgdist_scvi._anndata import get_obs
from lgdist_scvi._checks import check_choice, check_positive_int, list_names
from lgdist_scvi.data import NeighborhoodDataset, registered_anndata
from lgdist_scvi.model.base._calibration import calibrate
from lgdist_scvi.model.base._predictor import DataMixin, predictor_of
from lgdist_scvi.model.base._record import remember_training, training_call
from lgdist_scvi.train import (
    EntrySplitter,
    StagePlan,
    check_trainer_arguments,
    copies_for_stages,
    in_processes,
    listed,
    refuse_unknown,
    run_stage,
    share,
)

_EPOCHS = (4, 300)


class TrainingMixin(DataMixin):
    """Training in stages.

    A model names its stages, in their order, in `_stages`; what it trains later builds on what it trained before.
    """

    _stages: ClassVar[Mapping[str, type[StagePlan]]]

    def train(
        self,
        max_epochs: int | None = None,
        stage: Literal["all", "vae", "diffusion"] = "all",
        n_rounds: int = 1,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        batch_size: int = 128,
        early_stopping: bool = True,
        validation_samples: Sequence[str] | None = None,
        ema_decay: float | None = 0.99,
        plan_kwargs: dict[str, Any] | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the VAE, then the diffusion over it.

        Stopping early follows the loss on set-aside entries. Interrupting (Ctrl-C) leaves a model that can be used. Losses are in
        ``history_["vae/train_loss"]``, ``"vae/validation_loss"``, ``"diffusion/..."``; :func:`lgdist_scvi.pl.training_history`
        draws them. Steps after the stages (experts, region_effects, noise, intervals, skill) leave one row of what they chose, such
        as ``history_["experts/weights_hidden"]`` or ``history_["intervals/coverage_rate"]``.

        Of more than 16,384 spots the networks see patches, drawn at random over all slides, of up to 65,536 spots in all; what
        follows them is fitted and measured on 16,384 of these. Time and memory do not grow any further.

        Every stage trains with its own copies of `callbacks`; those of the last one are in ``model.trainer.callbacks`` afterwards.
        Callbacks, `early_stopping_monitor` and ``scvi.autotune`` find the losses of every stage as ``"train_loss"`` and
        ``"validation_loss"``, and those of one stage as ``"vae_validation_loss"``, ``"diffusion_validation_loss"``, ...; loggers
        get the latter. To tune one stage, add ``train_params={"stage": "vae"}``.

        Parameters
        ----------
        max_epochs
            Passes over the spots in each stage, of at most 16,384 spots each. ``None``: about 500 steps for the VAE and 300 for
            the diffusion, in 4 to 300 passes.
        stage
            ``"vae"``, ``"diffusion"`` (needs a trained VAE) or ``"all"``.
        n_rounds
            2 is the paper's protocol: train, complete the missing entries, and train on with the completed values standing in
            for what neighbours lack. Needs a mask.
        accelerator, devices
            As in scvi-tools. ``devices=2, strategy="ddp"`` trains with two processes, from a script: every process runs the whole of it,
            and all end with the same model. Stopping it (Ctrl-C) then ends all.
        batch_size
            Spots per step; with several processes, of each.
        early_stopping
            Whether to stop when the validation loss no longer falls.
        validation_samples
            Slides (values of `sample_key`) that the networks are not trained on; validation uses their set-aside entries. Gene
            statistics, the linear expert's loadings and the calibration know these slides: to score a slide that nothing has
            seen, train without it, and pass it to :meth:`get_completed_expression` afterwards.
        ema_decay
            Decay of the moving average of the weights; ``None`` for none.
        plan_kwargs
            For the training plans of both stages (`lr`, by default 2e-3 for the VAE and 1e-3 for the diffusion, `weight_decay`).
        datasplitter_kwargs
            For the data loaders (`num_workers`), and `external_indexing`: a list of the rows that train and the rows that validate;
            others do neither, nor do those outside of the patches that training sees. Rows that validate are still seen as neighbours of others: `pp.hold_out` hides them there too.
        **trainer_kwargs
            For :class:`scvi.train.Trainer` (`callbacks`, `logger`, `check_val_every_n_epoch`, `enable_progress_bar`, `strategy`).

        Raises
        ------
        ValueError
            If the diffusion is asked for before the VAE, a second round without missing entries, a slide is unknown, the model was
            loaded without data, rows are named that cannot be, checkpoints are asked for (the best weights are kept anyway), or several
            processes that are not started from a script, or were given different data.
        TypeError
            If a keyword is unknown, or a callback cannot be copied.
        """
        call = training_call(locals())
        self._check_call(stage, n_rounds, max_epochs, batch_size, ema_decay)
        names = [name for name in self._stages if stage in ("all", name)] * n_rounds
        stages = [name if place < len(self._stages) else f"{name}_round2" for place, name in enumerate(names)]
        arguments = {**trainer_kwargs, "early_stopping": early_stopping, "devices": devices}
        n_processes = check_trainer_arguments(
            arguments, stages, inspect.signature(self.train).parameters, parallel=True
        )
        refuse_unknown(plan_kwargs or {}, ("lr", "weight_decay"), "plan_kwargs")
        data = self.adata_manager.create_torch_dataset()
        seen = data.for_training
        splitter = EntrySplitter(
            seen,
            self.module.spots_set_aside(len(seen)),
            validation_spots=self._validation_spots(validation_samples),
            rows=seen.spots,
            n_obs=len(data),
            seed=settings.seed or 0,
            batch_size=batch_size,
            n_processes=n_processes,
            datasplitter_kwargs=datasplitter_kwargs,
        )
        plans = [
            self._stages[name](self.module, at, **(plan_kwargs or {})) for name, at in zip(names, stages, strict=True)
        ]
        shared = (self, self.module, self.adata, self.adata_manager, *listed(trainer_kwargs.get("logger")))
        callbacks = copies_for_stages(trainer_kwargs.pop("callbacks", None), stages, shared)
        if self.is_trained_ and not (stage == "diffusion" and not self.module.diffusion.trained):
            warnings.warn(
                "The model is trained already: training continues from its weights, and what history_ tells of the same stages "
                "is replaced.",
                stacklevel=settings.warnings_stacklevel,
            )
        with self._remembered(call, plans, data):
            self._forget(stage)
            splitter.adata_manager = self._data_for(seen, "set_aside")
            for plan, copies in zip(plans, callbacks, strict=True):
                if plan.stage == f"{names[0]}_round2":
                    self.module.begin_second_round()
                    self.n_rounds_ = 2
                    splitter.adata_manager = self._data_for(seen, "set_aside")
                completed = run_stage(
                    self,
                    plan,
                    splitter,
                    max_epochs=max_epochs or _default_epochs(plan, splitter.n_per_epoch, batch_size * n_processes),
                    ema_decay=ema_decay,
                    callbacks=copies,
                    stages=stages,
                    accelerator=accelerator,
                    devices=devices,
                    early_stopping=early_stopping,
                    **trainer_kwargs,
                )
                if not completed:
                    break
            else:
                call["interrupted"] = False
        if self.is_trained_:
            # Ctrl-C may come here as well: what is missing then is calibrated when first asked for
            calibration = self.calibration_ or calibrate(
                self, data, show=trainer_kwargs.get("enable_progress_bar", True)
            )
            if in_processes(trainer_kwargs):
                share(self.module, self.trainer.strategy)
                calibration = self.trainer.strategy.broadcast(calibration)
            self.calibration_ = calibration
            if seen is data:
                predictor_of(self, data)  # the first question finds region effects at hand

    def _check_call(
        self, stage: str, n_rounds: int, max_epochs: int | None, batch_size: int, ema_decay: float | None
    ) -> None:
        """Refuse a call of :meth:`train` that cannot be met."""
        if self.adata is None:
            raise ValueError(
                "the model was loaded without data; load it with the data to train on: load(..., adata=adata)"
            )
        check_choice("stage", stage, ("all", *self._stages))
        if n_rounds not in (1, 2):
            raise ValueError(f"n_rounds must be 1 or 2, got {n_rounds}")
        if n_rounds == 2 and (stage != "all" or keys.MASK not in self.adata_manager.data_registry):
            raise ValueError(
                'a second round trains on what the first one completed: it needs stage="all" and missing entries '
                "(register a mask_layer, see pp.observed_mask)"
            )
        if max_epochs is not None:
            check_positive_int(max_epochs, "max_epochs")
        check_positive_int(batch_size, "batch_size")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, or be None for no average; got {ema_decay!r}")
        first = next(iter(self._stages))
        if stage not in ("all", first) and not self.is_trained_:
            raise ValueError(f'stage {stage!r} needs a trained {first!r}; call train(stage="{first}") or train() first')

    def _forget(self, stage: str) -> None:
        """Drop what a training of these stages makes meaningless."""
        self.calibration_, history = None, self.history_ or {}  # of other weights
        left = ("experts", *self._stages)[:-1]  # a new diffusion leaves these steps as they are
        self.history_ = {key: frame for key, frame in history.items() if stage == "diffusion" and key.startswith(left)}
        if stage != "diffusion":
            self.module.diffusion.trained.fill_(False)  # it is of another VAE
            self.module.first_round, self.n_rounds_ = None, 1

    @contextmanager
    def _remembered(
        self, call: dict[str, Any], plans: Sequence[StagePlan], data: NeighborhoodDataset
    ) -> Iterator[None]:
        """Keep a call of :meth:`train` in the record, however it ends; or leave no trace of it, if it took no step."""
        module, call["interrupted"] = self.module, True
        values = {name: value.clone() for name, value in module.named_buffers()}
        others = module.first_round, self.n_rounds_, self.calibration_, self.history_
        try:
            yield
        finally:
            if any(plan.global_step > 0 for plan in plans):
                remember_training(self, call, data.fingerprint)
            else:
                module.first_round, self.n_rounds_, self.calibration_, self.history_ = others
                for name, value in values.items():
                    module.get_buffer(name).copy_(value)

    def _validation_spots(self, validation_samples: Sequence[str] | None) -> np.ndarray | None:
        if validation_samples is None:
            return None
        if keys.SAMPLE not in self.adata_manager.data_registry:
            raise ValueError("validation_samples needs slides; pass sample_key=... to setup_anndata")
        chosen = [validation_samples] if np.ndim(validation_samples) == 0 else list(validation_samples)
        chosen = set(map(str, chosen))
        sample_key = self.adata_manager.data_registry[keys.SAMPLE].attr_key
        labels = get_obs(registered_anndata(self.adata_manager))[sample_key].astype(str)
        if unknown := sorted(chosen - set(labels)):
            raise ValueError(f"unknown slides {list_names(unknown)}; available: {list_names(sorted(set(labels)), 20)}")
        spots = np.flatnonzero(labels.isin(chosen))
        if len(spots) == len(labels):
            raise ValueError("validation_samples names every slide; leave at least one to train on")
        return spots


def _default_epochs(plan: StagePlan, n_spots: int, batch_size: int) -> int:
    steps_per_epoch = max(1, int(np.ceil(n_spots / batch_size)))
    return int(np.clip(round(plan.n_steps / steps_per_epoch), *_EPOCHS))
