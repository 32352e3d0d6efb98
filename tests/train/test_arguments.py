"""What train() cannot heed is refused in one sentence, before anything is trained."""

from __future__ import annotations

import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from scvi.train import SaveCheckpoint

from lgdist_scvi import LGDiST
from lgdist_scvi.train import check_trainer_arguments

QUICK = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 1}


@pytest.fixture(autouse=True)
def _script(monkeypatch):
    """Whatever runs the tests, it is a script."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)


class Locked(Callback):
    """Cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def rows(*parts) -> dict:
    return {"datasplitter_kwargs": {"external_indexing": list(parts)}}


REFUSED = [
    ({"train_size": 0.9}, TypeError, "no 'train_size'.*external_indexing"),
    ({"validation_size": 0.1}, TypeError, "no 'validation_size'.*external_indexing"),
    ({"shuffle_set_split": False}, TypeError, "no 'shuffle_set_split'.*external_indexing"),
    ({"load_sparse_tensor": True}, TypeError, "no 'load_sparse_tensor'; batches are dense"),
    ({"plan_config": {"lr": 1e-3}}, TypeError, "no 'plan_config'; pass plan_kwargs"),
    ({"trainer_config": {}}, TypeError, "no 'trainer_config'; pass its entries"),
    ({"datamodule": object()}, TypeError, "no 'datamodule'.*registered AnnData"),
    ({"lr": 1e-3}, TypeError, "no 'lr'; pass plan_kwargs"),
    ({"use_gpu": True}, TypeError, "no 'use_gpu'; pass accelerator"),
    ({"max_epoch": 3}, TypeError, "no 'max_epoch'; did you mean 'max_epochs'"),
    ({"check_val_every_n_epochs": 3}, TypeError, "did you mean 'check_val_every_n_epoch'"),
    ({"nothing_like_it": 3}, TypeError, "no 'nothing_like_it'"),
    ({"plan_kwargs": {"learning_rate": 1}}, TypeError, "no 'learning_rate'; choices: 'lr', 'weight_decay'"),
    ({"plan_kwargs": {"lr": -1.0}}, ValueError, "lr must be a positive number, got -1"),
    ({"plan_kwargs": {"weight_decay": "a"}}, ValueError, "weight_decay must be a number"),
    ({"precision": "16-true"}, ValueError, "precision must be '32-true', '16-mixed' or 'bf16-mixed', got '16-true'"),
    ({"precision": "bf16-true"}, ValueError, "got 'bf16-true'"),
    ({"precision": "64-true"}, ValueError, "got '64-true'"),
    ({"precision": 64}, ValueError, "got 64"),
    ({"enable_checkpointing": True}, ValueError, "checkpoints within a stage.*model.save"),
    ({"callbacks": [ModelCheckpoint()]}, ValueError, "checkpoints within a stage.*model.save"),
    ({"callbacks": [Locked()]}, TypeError, "callback Locked cannot be copied .*__deepcopy__"),
    ({"callbacks": [3]}, TypeError, "callbacks of Lightning, got int"),
    ({"logger": "csv"}, TypeError, "logger of Lightning, True or False, got str"),
    ({"early_stopping_monitor": "elbo_validation"}, ValueError, "one of 'train_loss'.*got 'elbo_validation'"),
    (
        {"callbacks": EarlyStopping("elbo_validation")},
        ValueError,
        "monitor of EarlyStopping must be one of 'train_loss', .*got 'elbo_validation'",
    ),
    ({"check_val_every_n_epoch": 0}, ValueError, "check_val_every_n_epoch must be a whole number"),
    ({"limit_train_batches": 0}, ValueError, "nothing to train on"),
    ({"limit_val_batches": 0}, ValueError, "no loss to stop by; pass early_stopping=False"),
    ({"overfit_batches": 1}, ValueError, "overfit_batches=1 would replace the sampler.*leave it out"),
    ({"strategy": "ddp"}, ValueError, "strategy='ddp' needs the number of devices, such as devices=2"),
    (
        {"strategy": "ddp_spawn", "devices": 2},
        ValueError,
        'ddp_spawn.* put the training into a script and pass strategy="ddp"',
    ),
    ({"strategy": "ddp_notebook", "devices": 2}, ValueError, "put the training into a script"),
    ({"strategy": "fsdp", "devices": 2}, ValueError, "put the training into a script"),
    ({"strategy": DDPStrategy(), "devices": 2}, ValueError, 'pass strategy="ddp"'),
    ({"strategy": "ddp", "devices": 2, "num_nodes": 0}, ValueError, "num_nodes must be a whole number"),
    ({"strategy": "ddp", "devices": 2, "use_distributed_sampler": True}, TypeError, "split between processes"),
    ({"num_nodes": 2}, ValueError, 'several processes need strategy="ddp" as well'),
    (
        {"devices": 2},
        ValueError,
        r"need strategy=\"ddp\" as well, got devices=2; or pass one device, such as devices=\[0\]",
    ),
    ({"devices": [0, 1]}, ValueError, 'need strategy="ddp"'),
    ({"devices": "2"}, ValueError, 'need strategy="ddp"'),
    ({"devices": "0,1"}, ValueError, 'need strategy="ddp"'),
    ({"batch_size": 0}, ValueError, "batch_size must be a whole number"),
    ({"ema_decay": 2}, ValueError, "ema_decay must lie between 0 and 1"),
    ({"datasplitter_kwargs": {"train_size": 0.9}}, TypeError, "no 'train_size'.*external_indexing"),
    ({"datasplitter_kwargs": {"shuffle_set_split": False}}, TypeError, "not split at random"),
    ({"datasplitter_kwargs": {"batch_size": 3}}, TypeError, r"pass train\(batch_size"),
    ({"datasplitter_kwargs": {"num_worker": 0}}, TypeError, "did you mean 'num_workers'"),
    (
        {"datasplitter_kwargs": {"drop_last": True}, "batch_size": 1000},
        ValueError,
        "spots are left to train on, too few",
    ),
    (rows(np.arange(50), np.arange(45, 60)), ValueError, "5 rows both train and validate"),
    (rows(np.arange(50), [], [3]), ValueError, "1 rows both train and are left out"),
    (rows(np.array([1, 1])), ValueError, "1 rows are named more than once"),
    (rows(np.arange(151)), ValueError, "row numbers from 0 to 149"),
    (rows([-1]), ValueError, "row numbers from 0 to 149"),
    (rows([0.5]), ValueError, "row numbers from 0 to 149"),
    (rows(None, np.arange(9)), ValueError, "names no rows to train on"),
    (rows(), ValueError, "must be a list of rows"),
    ({"datasplitter_kwargs": {"external_indexing": np.arange(9)}}, ValueError, "must be a list of rows"),
]


def test_refused_before_training(untrained):
    model = untrained()
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    for kwargs, error, message in REFUSED:
        with pytest.raises(error, match=message):
            model.train(**{**QUICK, **kwargs})
        assert not model.is_trained_ and model.history_ is None, kwargs
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    "given, n",
    [
        ({}, 1),
        ({"devices": "auto", "strategy": "auto"}, 1),
        ({"devices": [0]}, 1),
        ({"devices": 2, "strategy": "ddp"}, 2),
        ({"devices": [1, 3, 4], "strategy": "ddp_find_unused_parameters_true"}, 3),
        ({"devices": "0,1", "strategy": "ddp"}, 2),
        ({"devices": "2", "strategy": "ddp_find_unused_parameters_false", "num_nodes": 3}, 6),
    ],
)
def test_number_of_processes(given, n):
    assert check_trainer_arguments(given, ["vae"], parallel=True) == n


def test_several_processes_where_one_must_do():
    with pytest.raises(ValueError, match="this training is in one process, got strategy='ddp'; leave it out"):
        check_trainer_arguments({"devices": 2, "strategy": "ddp"}, ["adapter"])
    with pytest.raises(ValueError, match=r"on one device, got devices=2; pass one, such as devices=\[0\]"):
        check_trainer_arguments({"devices": 2}, ["adapter"])


def test_several_processes_in_a_notebook(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(ValueError, match="runs the script once for each process.* put the training into a file"):
        check_trainer_arguments({"devices": 2, "strategy": "ddp"}, ["vae"], parallel=True)


def test_the_checkpoint_of_scvi_tools_cannot_switch_off_experts(untrained):
    """Restored within a stage it would put back a model whose experts are not fitted."""
    model = untrained()
    model.train(**QUICK)
    with pytest.raises(ValueError, match="checkpoints within a stage"):
        model.train(callbacks=[SaveCheckpoint(monitor="validation_loss", load_best_on_end=True)], **QUICK)
    assert model.module.experts.in_use and model.module.diffusion.trained


def test_other_arguments_of_the_trainer(untrained):
    """A check of validation before training is none of the losses; without validation the last weights stay."""
    model = untrained()
    model.train(stage="vae", num_sanity_val_steps=2, **QUICK)
    assert len(model.history_["vae/validation_loss"]) == 1
    model.train(stage="vae", limit_val_batches=0, early_stopping=False, gradient_clip_val=1.0, **QUICK)
    assert "vae/validation_loss" not in model.history_ and len(model.history_["vae/train_loss"]) == 1


@pytest.mark.parametrize("precision", ["32-true", 32, "bf16-mixed"])
def test_precisions_that_train(untrained, precision):
    model = untrained()
    model.train(precision=precision, stage="vae", **QUICK)
    assert np.isfinite(model.get_completed_expression(observed="model", return_numpy=True)).all()


class Watch(Callback):
    def __init__(self) -> None:
        self.trained, self.validated = set(), set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.trained.update(batch["spot"].numpy().ravel().tolist())

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.update(batch["spot"].numpy().ravel().tolist())


def in_mask(spots: range) -> np.ndarray:
    return np.isin(np.arange(150), spots)


@pytest.mark.parametrize("form", [np.array, list, in_mask])
def test_named_rows_train_and_validate(untrained, form):
    model = untrained()
    rest = set(range(150)) - set(model.module.spots_set_aside(150))
    parts = [form(range(80)), form(range(80, 110)), form(range(110, 150))]
    model.train(callbacks=[Watch()], datasplitter_kwargs={"external_indexing": parts}, stage="vae", **QUICK)
    (watch,) = (one for one in model.trainer.callbacks if isinstance(one, Watch))
    assert watch.trained == set(range(80)) & rest
    assert watch.validated == set(range(80, 110)) & rest


def test_without_rows_that_validate_those_that_train_do(untrained):
    model = untrained()
    model.train(callbacks=Watch(), datasplitter_kwargs={"external_indexing": [np.arange(80)]}, stage="vae", **QUICK)
    (watch,) = (one for one in model.trainer.callbacks if isinstance(one, Watch))
    assert watch.trained == watch.validated == set(range(80)) - set(model.module.spots_set_aside(150))


def test_rows_and_slides_are_named_twice(untrained):
    with pytest.raises(ValueError, match="named twice"):
        untrained(n_samples=2).train(validation_samples=["slide_2"], **rows(np.arange(9)), **QUICK)


def test_trained_again(untrained):
    """It is said; another stage of the same training is not trained again."""
    model = untrained()
    model.train(stage="vae", **QUICK)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The model is trained already")
        model.train(stage="diffusion", **QUICK)
    with pytest.warns(UserWarning, match="trained already: training continues from its weights.*replaced"):
        model.train(stage="vae", **QUICK)
    assert not any(key.startswith("diffusion") for key in model.history_)


def test_a_model_without_data_is_not_trained(untrained, tmp_path):
    model = untrained()
    model.train(stage="vae", **QUICK)
    model.save(tmp_path / "model")
    loaded = LGDiST.load(tmp_path / "model", adata=False, accelerator="cpu")
    with pytest.raises(ValueError, match="loaded without data; load it with the data to train on"):
        loaded.train(**QUICK)
