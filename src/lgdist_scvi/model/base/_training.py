"""Training of the model: stages, rounds, and what follows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from scvi import settings

from lgdist_scvi import _keys as keys
from lgdist_scvi._checks import check_choice, check_positive_int, list_names
from lgdist_scvi.data import NeighborhoodDataset
from lgdist_scvi.model.base._calibration import calibration_of
from lgdist_scvi.model.base._predictor import predictor_of, with_prefill
from lgdist_scvi.model.base._record import remember_training, training_call
from lgdist_scvi.train import DiffusionPlan, EntrySplitter, StagePlan, VAEPlan, run_stage

_STEPS = {"vae": 500, "diffusion": 300}  # optimisation steps that a slide needs
_EPOCHS = (4, 300)
_PLANS = {"vae": VAEPlan, "diffusion": DiffusionPlan}


class TrainingMixin:
    """Training of :class:`~lgdist_scvi.LGDiST`."""

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
        draws them.

        Parameters
        ----------
        max_epochs
            Passes over the spots in each stage. ``None``: about 500 steps for the VAE and 300 for the diffusion, in 4 to 300
            passes.
        stage
            ``"vae"``, ``"diffusion"`` (needs a trained VAE) or ``"all"``.
        n_rounds
            2 is the paper's protocol: train, complete the missing entries, and train on with the completed values standing in
            for what neighbours lack. Needs a mask.
        accelerator, devices
            As in scvi-tools.
        batch_size
            Spots per step.
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
            For the data loaders (`num_workers`).
        **trainer_kwargs
            For :class:`scvi.train.Trainer` (`callbacks`, `logger`, `check_val_every_n_epoch`, `enable_progress_bar`).

        Raises
        ------
        ValueError
            If the diffusion is asked for before the VAE, a second round without missing entries, or a slide is unknown.
        """
        call = training_call(locals())
        check_choice("stage", stage, ("all", "vae", "diffusion"))
        if n_rounds not in (1, 2):
            raise ValueError(f"n_rounds must be 1 or 2, got {n_rounds}")
        if n_rounds == 2 and (stage != "all" or keys.MASK not in self.adata_manager.data_registry):
            raise ValueError(
                'a second round trains on what the first one completed: it needs stage="all" and missing entries '
                "(register a mask_layer, see pp.observed_mask)"
            )
        if max_epochs is not None:
            check_positive_int(max_epochs, "max_epochs")
        if stage == "diffusion" and not self.is_trained_:
            raise ValueError('the diffusion needs a trained VAE; call train(stage="vae") or train() first')
        data = self.adata_manager.create_torch_dataset()
        splitter = EntrySplitter(
            data,
            self.module.spots_set_aside(self.adata.n_obs),
            validation_spots=self._validation_spots(validation_samples),
            seed=settings.seed or 0,
            batch_size=batch_size,
            **(datasplitter_kwargs or {}),
        )
        names = [name for name in _PLANS if stage in ("all", name)] * n_rounds
        plans = [_PLANS[name](self.module, **(plan_kwargs or {})) for name in names]
        with self._remembered(call, plans, data):
            if stage != "diffusion":
                # a new VAE makes an old diffusion meaningless
                self.module.diffusion.trained.fill_(False)
                self.module.first_round, self.n_rounds_ = None, 1
            self.calibration_ = None  # of other weights
            splitter.adata_manager = with_prefill(self, data, "set_aside")
            for index, (name, plan) in enumerate(zip(names, plans, strict=True)):
                later = name in names[:index]
                if later and name == names[0]:
                    self.module.begin_second_round()
                    self.n_rounds_ = 2
                    splitter.adata_manager = with_prefill(self, data, "set_aside")
                completed = run_stage(
                    self,
                    f"{name}_round2" if later else name,
                    plan,
                    splitter,
                    max_epochs=max_epochs or _default_epochs(name, splitter.n_train, batch_size),
                    ema_decay=ema_decay,
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
            calibration_of(self)
            predictor_of(self, data)  # the first question finds region effects at hand

    @contextmanager
    def _remembered(
        self, call: dict[str, Any], plans: Sequence[StagePlan], data: NeighborhoodDataset
    ) -> Iterator[None]:
        """Keep a call of :meth:`train` in the record, however it ends; or leave no trace of it, if it took no step."""
        module, call["interrupted"] = self.module, True

        def state() -> tuple[torch.Tensor, ...]:
            return module.diffusion.trained, module.experts.in_use, module.diffusion.scale

        values = [value.clone() for value in state()]
        others = module.first_round, self.n_rounds_, self.calibration_
        try:
            yield
        finally:
            if any(plan.global_step > 0 for plan in plans):
                remember_training(self, call, data.fingerprint)
            else:
                for current, value in zip(state(), values, strict=True):
                    current.copy_(value)
                module.first_round, self.n_rounds_, self.calibration_ = others

    def _validation_spots(self, validation_samples: Sequence[str] | None) -> np.ndarray | None:
        if validation_samples is None:
            return None
        if keys.SAMPLE not in self.adata_manager.data_registry:
            raise ValueError("validation_samples needs slides; pass sample_key=... to setup_anndata")
        chosen = [validation_samples] if np.ndim(validation_samples) == 0 else list(validation_samples)
        chosen = set(map(str, chosen))
        labels = self.adata.obs[self.adata_manager.data_registry[keys.SAMPLE].attr_key].astype(str)
        unknown = sorted(chosen - set(labels))
        if unknown:
            raise ValueError(f"unknown slides {list_names(unknown)}; available: {list_names(sorted(set(labels)), 20)}")
        spots = np.flatnonzero(labels.isin(chosen))
        if len(spots) == len(labels):
            raise ValueError("validation_samples names every slide; leave at least one to train on")
        return spots


def _default_epochs(stage: str, n_spots: int, batch_size: int) -> int:
    steps_per_epoch = max(1, int(np.ceil(n_spots / batch_size)))
    return int(np.clip(round(_STEPS[stage] / steps_per_epoch), *_EPOCHS))
