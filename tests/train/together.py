"""A script for two processes: each trains models, and writes what it ends with."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch
from lightning.pytorch.callbacks import Callback

from lgdist_scvi import LGDiST, Stem, datasets
from lgdist_scvi.data import _dataset
from lgdist_scvi.model._stages import DiffusionStage, VAEStage
from lgdist_scvi.train import _splitter

SIZES = {
    "n_latent": 8, "n_hidden": 32, "n_layers": 1, "n_heads": 2, "n_denoiser_hidden": 32, "n_denoiser_layers": 1, "n_denoiser_heads": 2,
    "n_timesteps": 50,
}  # fmt: skip
EXPERTS = {"n_profiles": 8, "n_mixtures": 1}
SEVERAL = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False}


class Seen(Callback):
    """Records what this process trains on and validates by."""

    def __init__(self) -> None:
        self.trained: dict[str, list[list[int]]] = {}
        self.validated: set[int] = set()

    def __deepcopy__(self, memo: dict) -> Seen:
        return self  # one for all stages

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.trained.setdefault(pl_module.stage, []).append(batch["spot"].flatten().tolist())

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.update(batch["spot"].flatten().tolist())


def two_slides(seed: int = 0):
    """Two slides of which some entries are missing."""
    adata = datasets.simulated_visium(n_spots=240, n_genes=40, n_samples=2, seed=seed)
    adata.layers["known"] = np.random.default_rng(0).random(adata.shape) < 0.9
    return adata


def lgdist(adata, mask: bool = True, seed: int = 0) -> LGDiST:
    scvi.settings.seed = 0
    LGDiST.setup_anndata(adata, sample_key="sample", mask_layer="known" if mask else None)
    return LGDiST(adata, seed=seed, **SIZES, **EXPERTS)


def stem() -> Stem:
    scvi.settings.seed = 0
    adata = datasets.simulated_visium(n_spots=160, n_genes=20, n_samples=3, seed=0)
    adata.obsm["X_image"] = np.log(adata.layers["rate"] + 1e-6).astype(np.float32)
    Stem.setup_anndata(adata, sample_key="sample")
    return Stem(adata, n_components=8, **{**SIZES, "n_layers": 2})


def ending(model: LGDiST | Stem, seen: Seen | None = None) -> dict[str, Any]:
    """What a process has after training; bits as hashes."""
    bounds = model.get_prediction_interval(return_numpy=True, seed=0)
    bits = {
        "weights": [value.numpy() for value in model.module.state_dict().values()],
        "predicted": [model.get_completed_expression(observed="model", return_numpy=True)],
        "interval": list(bounds),
        "skill": [model.skill_table().select_dtypes("number").to_numpy()],
    }
    told = {
        name: hashlib.sha256(b"".join(map(np.ndarray.tobytes, arrays))).hexdigest() for name, arrays in bits.items()
    }
    told["epochs"] = {name: len(frame) for name, frame in model.history_.items()}
    told["validation"] = {
        name: frame.to_numpy().ravel().tolist() for name, frame in model.history_.items() if "validation" in name
    }
    if seen is not None:
        told |= {"trained": seen.trained, "validated": sorted(seen.validated)}
    return told


def main(what: str, folder: str) -> None:
    torch.set_num_threads(1)
    rank, told = int(os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))), {}
    if what == "lgdist":
        told["refused"] = []
        rows = np.random.default_rng(rank).permutation(200)  # drawn anew in each process
        split = {"datasplitter_kwargs": {"external_indexing": [rows[:150], rows[150:]]}}
        for adata, seed, keywords in (
            (two_slides(seed=rank), 0, {}),
            (two_slides(), rank, {}),
            (two_slides(), 0, split),
        ):
            other = lgdist(adata, seed=seed)
            try:
                other.train(max_epochs=1, **SEVERAL, **keywords)
            except ValueError as error:
                told["refused"].append((str(error), other.is_trained_, other.history_))
        model, seen = lgdist(two_slides()), Seen()
        model.train(
            max_epochs=8, n_rounds=2, batch_size=16, callbacks=[seen], check_val_every_n_epoch=1, early_stopping_patience=2,
            early_stopping_min_delta=10.0, early_stopping_warmup_epochs=0, **SEVERAL,
        )  # fmt: skip
        told["stopped"] = ending(model, seen)
        adata = two_slides()
        model = lgdist(adata, mask=False)
        model.train(max_epochs=30, batch_size=32, **SEVERAL)
        told["error"] = error_of(model)
        # as of a large slide: some spots train, an epoch draws some of these, and fewer calibrate
        _dataset._N_CALIBRATION, _dataset._N_TRAINING, _splitter._PER_EPOCH, _splitter._RUN = 100, 200, 96, 20
        model, seen = lgdist(adata, mask=False), Seen()
        model.train(max_epochs=3, batch_size=16, callbacks=[seen], **SEVERAL)
        told["drawn"] = ending(model, seen)
    else:
        VAEStage.n_steps = DiffusionStage.n_steps = 8  # of the LGDiST that finds its targets
        model = stem()
        model.train(max_epochs=2, batch_size=32, **SEVERAL)
        told["stem"] = ending(model)
    Path(folder, f"{rank}.json").write_text(json.dumps(told))


def error_of(model: LGDiST) -> float:
    """Mean squared error of predicted against true rates, log1p(CP10K)."""
    predicted = model.get_completed_expression(observed="model", return_numpy=True)
    return float(((np.log1p(model.adata.layers["rate"] * 1e4) - predicted) ** 2).mean())


if __name__ == "__main__":
    main(*sys.argv[1:])
