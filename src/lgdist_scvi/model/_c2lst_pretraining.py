"""Pretraining of the central model of C2L-ST, from patches that may be anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from lgdist_scvi._checks import check_positive_int
from lgdist_scvi._version import __version__
from lgdist_scvi.model._c2lst_central import CentralModel, new_central, seed_of
from lgdist_scvi.model._c2lst_patches import collect_patches, listed_sources
from lgdist_scvi.module.c2lst import Pretraining, pretrain


def pretrain_central(
    patches: Any,
    n_steps: int = 5000,
    *,
    central: CentralModel | str | PathLike[str] | None = None,
    size: int = 64,
    channels: Sequence[int] = (64, 128),
    fold: int = 4,
    batch_size: int = 32,
    lr: float = 1e-3,
    ema_decay: float = 0.999,
    seed: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    accelerator: str = "auto",
    silent: bool = False,
) -> CentralModel:
    """Train a central model on patches of tissue, without expression.

    Parameters
    ----------
    patches
        Array or zarr array, uint8 (n, edge, edge, 3), as ``pp.image_patches(adata, image, tissue=True)`` cuts them; the path of a
        zarr array or of a folder of pictures; or a list of these.
    n_steps
        Training steps.
    central
        Model to train on, such as one of another centre; the three sizes are its own then. It stays as it is.
    size
        Edge of the patches in pixels; larger ones are reduced.
    channels
        Channels of the network at each resolution.
    fold
        Edge of the squares of pixels that the network sees as one place.
    batch_size, lr, ema_decay
        Patches in a step, highest learning rate, decay of the moving average of the weights.
    seed
        Of weights and steps; ``None``: that of scvi-tools, or 0.
    checkpoint
        File that keeps the training every 100 steps. If it exists, training goes on from there, with the same steps as without an
        interruption.
    accelerator
        ``"auto"``, ``"cpu"``, or a device of torch such as ``"cuda"``.
    silent
        Show no progress.

    Returns
    -------
    The central model; ``save(folder)`` keeps it.

    Raises
    ------
    FileNotFoundError
        If a path leads nowhere.
    ValueError
        If there are no patches, sizes do not fit, or the checkpoint is of another training.
    """
    for value, name in ((n_steps, "n_steps"), (batch_size, "batch_size"), (size, "size"), (fold, "fold")):
        check_positive_int(value, name)
    if central is None:
        made = new_central(size, tuple(channels), fold, seed_of(seed))
    else:
        given = central if isinstance(central, CentralModel) else CentralModel.load(central)
        made = CentralModel.without_weights(given.description())
        made.unet.load_state_dict(given.unet.state_dict())
    device = accelerator
    if accelerator == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    how = Pretraining(n_steps, batch_size, lr, ema_decay=ema_decay, seed=seed_of(seed))
    collected = collect_patches(patches, made.size)
    history = pretrain(
        made.unet,
        made.scheduler,
        collected,
        how,
        None if checkpoint is None else Path(checkpoint),
        device,
        not silent,
    )
    record = {"version": __version__, "n_patches": len(collected), "sources": listed_sources(patches), **vars(how)}
    return CentralModel(made.unet, made.scheduler, {**record, "loss": history})
