"""Every stage has callbacks, names in loggers, curves and a checkpoint's word of its own."""

from __future__ import annotations

import signal

import numpy as np
import pandas as pd
import pytest
import scvi
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from lgdist_scvi import LGDiST, pl

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}


def n_validations(model) -> dict[str, int]:
    return {stage: len(model.history_[f"{stage}/validation_loss"]) for stage in ("vae", "diffusion")}


class Count(Callback):
    def __init__(self, model=None) -> None:
        self.model, self.stages = model, []

    def on_train_start(self, trainer, pl_module) -> None:
        self.stages.append(pl_module.stage)
        assert self.model is None or self.model.module is pl_module.module  # the model itself is not copied


def test_each_stage_has_copies_of_the_callers_callbacks(untrained):
    """Nothing can be learnt at a learning rate of zero: each stage stops by its own losses, after the same number of validations."""
    model = untrained()
    stop, count = EarlyStopping("validation_loss", patience=3), Count(model)
    model.train(
        max_epochs=20, early_stopping=False, check_val_every_n_epoch=1, plan_kwargs={"lr": 1e-12}, ema_decay=None,
        callbacks=[stop, count], **QUICK,
    )  # fmt: skip
    assert all(4 <= n <= 10 for n in n_validations(model).values())
    assert stop.wait_count == 0 and np.isinf(float(stop.best_score))
    assert count.stages == []
    last = {type(one): one for one in model.trainer.callbacks}
    assert last[EarlyStopping].wait_count == 3
    assert last[Count].stages == ["diffusion"]


@pytest.mark.parametrize("how", ["callback", "argument"])
def test_the_loss_of_one_stage_stops_that_stage_alone(untrained, how):
    model = untrained()
    kwargs = {"early_stopping": False, "callbacks": EarlyStopping("vae_validation_loss", patience=2)}
    if how == "argument":
        kwargs = {"early_stopping_monitor": "vae_validation_loss", "early_stopping_patience": 2}
        kwargs["early_stopping_warmup_epochs"] = 0
    model.train(max_epochs=9, check_val_every_n_epoch=1, plan_kwargs={"lr": 1e-12}, ema_decay=None, **kwargs, **QUICK)
    n = n_validations(model)
    assert n["vae"] < 9 and n["diffusion"] == 9


def test_loggers_tell_stages_apart_and_do_not_take_the_history(untrained, tmp_path):
    model = untrained()
    model.train(max_epochs=3, logger=CSVLogger(tmp_path), **QUICK)
    logged = pd.read_csv(tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
    for stage in ("vae", "diffusion"):
        for loss in ("train_loss", "validation_loss"):
            assert loss not in logged
            np.testing.assert_allclose(
                logged[f"{stage}_{loss}"].dropna(), model.history_[f"{stage}/{loss}"][loss], rtol=1e-6
            )


def test_history_does_not_depend_on_the_logger(untrained):
    histories = []
    for logger in (None, False):
        scvi.settings.seed = 0
        model = untrained()
        model.train(max_epochs=4, check_val_every_n_epoch=2, logger=logger, **QUICK)
        histories.append(model.history_)
        pl.training_history(model)
    assert list(histories[0]["vae/validation_loss"].index) == [1, 3]
    assert list(histories[0]["vae/train_loss"].index) == [0, 1, 2, 3]
    assert set(histories[0]) == set(histories[1])
    for key, frame in histories[0].items():
        pd.testing.assert_frame_equal(frame, histories[1][key])


def test_what_a_callback_logs_is_in_the_history(untrained):
    class Log(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            pl_module.log("mine", float(trainer.global_step), on_step=False, on_epoch=True, batch_size=1)

    model = untrained()
    model.train(max_epochs=2, stage="vae", batch_size=1000, callbacks=[Log()], **QUICK)
    assert model.history_["vae/mine"]["mine"].tolist() == [1.0, 2.0]


def test_a_model_saved_within_a_stage_is_not_trained(untrained, tmp_path):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer._model.save(tmp_path / pl_module.stage, overwrite=True)

    model = untrained()
    model.train(max_epochs=2, callbacks=[Save()], **QUICK)
    for stage in ("vae", "diffusion"):
        loaded = LGDiST.load(tmp_path / stage, adata=model.adata, accelerator="cpu")
        assert "not trained" in repr(loaded).splitlines()[-1]
        with pytest.raises(ValueError, match="not trained yet"):
            loaded.get_completed_expression()


def test_steps_that_an_end_of_the_program_left_out_are_taken_later(untrained, tmp_path):
    """Saved after SIGTERM in the first stage: experts are missing, which is said; the first question fits them."""

    class Terminate(Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            if trainer.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

    model = untrained()
    with pytest.raises(SystemExit):
        model.train(max_epochs=5, callbacks=[Terminate()], **QUICK)
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=model.adata, accelerator="cpu")
    assert "diffusion not trained, experts not fitted, intervals not calibrated" in repr(loaded)
    assert not loaded.module.experts.in_use
    loaded.get_completed_expression()
    assert loaded.module.experts.in_use
    assert repr(loaded).splitlines()[-1].strip() == "VAE trained, diffusion not trained"
