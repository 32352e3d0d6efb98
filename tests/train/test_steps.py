"""Named steps, the screen, and stages of another model."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scvi
import torch
from scvi.dataloaders import DataSplitter

from lgdist_scvi.train import StagePlan, named_step, quietly, run_stage

QUICK = {"accelerator": "cpu", "enable_progress_bar": False}
SCRIPT = """
import torch
from lgdist_scvi import LGDiST, datasets
adata = datasets.simulated_visium(n_spots=129, n_genes=30, seed=0)
LGDiST.setup_anndata(adata)
model = LGDiST(adata, n_profiles=10, n_mixtures=2, n_latent=6, n_hidden=24, n_layers=1, n_denoiser_hidden=16)
print("BEFORE", flush=True)
model.train(max_epochs=3, accelerator="cpu")
print("AFTER", flush=True)
"""


def test_the_first_screen():
    """At most six lines besides progress bars, of which each step has one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, env=environment,
    )  # fmt: skip
    shown = result.stdout.split("BEFORE")[1].split("AFTER")[0].replace("\r", "\n").splitlines()
    bars = [line for line in shown if "it/s" in line or "s/it" in line]
    others = [line for line in shown if line.strip() and line not in bars]
    assert len(others) <= 6, others
    for name in (
        "Epoch",
        "vae_train_loss",
        "experts",
        "diffusion_train_loss",
        "region effects",
        "noise",
        "intervals",
        "skill",
    ):
        assert any(name in line for line in bars), name


def test_every_step_is_in_the_history(untrained):
    model = untrained()
    model.train(max_epochs=2, **QUICK)
    told = {key.split("/")[0] for key in model.history_}
    assert told == {"vae", "experts", "diffusion", "region_effects", "noise", "intervals", "skill"}
    weights = model.history_["experts/weights_hidden"]
    assert list(weights.columns) == ["mixture", "linear"] and len(weights) == 1
    np.testing.assert_allclose(weights.to_numpy()[0], model.module.experts.weights_hidden.mean(1), rtol=1e-6)


def test_a_step_that_fails_leaves_no_entry(untrained, capsys):
    model = untrained()
    with named_step(model, "first") as report:
        report |= {"n": 3, "share": {"a": 0.5, "b": 0.25}}
    with pytest.raises(KeyboardInterrupt), named_step(model, "second") as report:
        report["n"] = 1
        raise KeyboardInterrupt
    assert set(model.history_) == {"first/n", "first/share"}
    assert model.history_["first/share"].iloc[0].to_dict() == {"a": 0.5, "b": 0.25}
    assert capsys.readouterr().out == ""


def test_progress_lines_follow_the_verbosity(untrained, capsys):
    model, before = untrained(), scvi.settings.verbosity
    try:
        for level, shown in ((logging.INFO, True), (logging.ERROR, False)):
            scvi.settings.verbosity = level
            with named_step(model, "some_step", show=True):
                pass
            assert ("some step: 100%" in capsys.readouterr().out) == shown
    finally:
        scvi.settings.verbosity = before


def test_quietly_restores_and_lets_other_warnings_through():
    logger, before = logging.getLogger("lightning.pytorch"), scvi.settings.verbosity
    level = logger.level
    try:
        scvi.settings.verbosity = logging.INFO
        with pytest.warns(UserWarning, match="no clear skill"), quietly():
            assert not logger.isEnabledFor(logging.INFO)
            warnings.warn("no clear skill", UserWarning, stacklevel=1)
        assert logger.level == level
        logger.setLevel(logging.ERROR)  # the user's choice
        with quietly():
            assert logger.level == logging.ERROR
        logger.setLevel(logging.INFO)
        scvi.settings.verbosity = logging.DEBUG  # the user wants to see all
        with pytest.warns(UserWarning, match="number of training batches"), quietly():
            assert logger.isEnabledFor(logging.INFO)
            warnings.warn("The number of training batches (2) is smaller", UserWarning, stacklevel=1)
    finally:
        logger.setLevel(level)
        scvi.settings.verbosity = before


class EncoderStage(StagePlan):
    def training_loss(self, batch, batch_idx) -> torch.Tensor:
        return self.module(batch)[2].loss

    validation_loss = training_loss

    def finish(self, batches) -> dict:
        return {"n_batches": sum(1 for _ in batches)}


def test_a_stage_of_another_model(untrained):
    """Stages know no LGDiST: here one trains the encoder of SCVI, the rest frozen, and what was frozen before stays so."""
    adata = untrained().adata.copy()
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, n_hidden=8, n_latent=3)
    module = model.module
    module.px_r.requires_grad_(False)
    before = {key: value.clone() for key, value in module.named_parameters()}
    plan = EncoderStage(module, module.z_encoder, "encoder", lr=1e-2, weight_decay=0.0)
    plan.finishing = "counting"
    splitter = DataSplitter(model.adata_manager, train_size=0.8, batch_size=50)
    splitter.setup()
    assert run_stage(model, plan, splitter, max_epochs=3, ema_decay=0.5, **QUICK)
    assert model.is_trained_
    changed = {key for key, value in module.named_parameters() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("z_encoder") for key in changed)
    assert [key for key, value in module.named_parameters() if not value.requires_grad] == ["px_r"]
    assert len(model.history_["encoder/train_loss"]) == len(model.history_["encoder/validation_loss"]) == 3
    assert model.history_["counting/n_batches"].iloc[0, 0] == 3


def test_training_knows_no_model():
    """It needs torch, Lightning and scvi-tools alone."""
    code = "import sys, lgdist_scvi.train; print(*(name for name in sys.modules if name.startswith('lgdist_scvi')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    face = ("lgdist_scvi", "lgdist_scvi._version")
    assert [
        name for name in result.stdout.split() if name not in face and not name.startswith("lgdist_scvi.train")
    ] == []
