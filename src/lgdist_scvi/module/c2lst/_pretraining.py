"""Training of the central model: patches without expression."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lgdist_scvi.module.c2lst._images import fold_of, to_network
from lgdist_scvi.module.c2lst._noise import denoising_loss

if TYPE_CHECKING:
    from diffusers import UNet2DModel

_WARMUP = 100  # steps


@dataclass(frozen=True)
class Pretraining:
    """How a central model is trained.

    Attributes
    ----------
    n_steps, batch_size, lr, weight_decay, ema_decay
        Of AdamW, whose learning rate rises for 100 steps and falls as a cosine, and of the moving average of the weights.
    seed
        Of every step: a resumed training takes the same steps.
    save_every
        Steps between checkpoints.
    """

    n_steps: int
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int = 100


def pretrain(
    unet: UNet2DModel,
    scheduler: Any,
    patches: np.ndarray,
    how: Pretraining,
    checkpoint: Path | None = None,
    device: str = "cpu",
    show: bool = True,
) -> list[float]:
    """Train a network of images in place; at the end it has the moving average of its weights.

    Patches are turned and mirrored at random: tissue has no upper side.

    Parameters
    ----------
    unet, scheduler
        Network and schedule.
    patches
        uint8, (n, size, size, 3).
    how
        Settings.
    checkpoint
        File that holds the training every so many steps; one that exists is gone on from.
    device
        Where to train.
    show
        Whether to show progress.

    Returns
    -------
    Mean loss of every `save_every` steps.

    Raises
    ------
    ValueError
        If the checkpoint is of another training.
    """
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    fold, n_timesteps = fold_of(unet), scheduler.config["num_train_timesteps"]
    unet.to(device).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=how.lr, weight_decay=how.weight_decay, betas=(0.9, 0.99))
    average = EMAModel(unet.parameters(), decay=how.ema_decay, use_ema_warmup=True, power=0.75)
    average.to(device)
    state = {"step": 0, "history": []}
    identity = _identity(unet, scheduler, patches, how)
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["identity"] != identity:
            raise ValueError(
                f"{str(checkpoint)!r} is a checkpoint of a training on other patches or with other settings; remove it, or name another"
            )
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
    history, losses = state["history"], []
    bar = tqdm(range(state["step"], how.n_steps), "central model", how.n_steps, initial=state["step"], disable=not show)
    for step in bar:
        rng = np.random.default_rng([how.seed, step])
        chosen = torch.from_numpy(_turned(patches[rng.integers(len(patches), size=how.batch_size)], rng))
        images = to_network(chosen, fold).to(device)
        timestep = torch.from_numpy(rng.integers(n_timesteps, size=len(images))).to(device)
        noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(device)
        loss = denoising_loss(lambda x, t: unet(x, t).sample, scheduler, images, timestep, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for group in optimizer.param_groups:
            fall = 0.5 * (1 + np.cos(np.pi * step / how.n_steps))
            group["lr"] = float(how.lr * min(1.0, (step + 1) / _WARMUP) * max(fall, 0.02))
        optimizer.step()
        average.step(unet.parameters())
        losses.append(loss.item())
        if (step + 1) % how.save_every == 0 or step + 1 == how.n_steps:
            history.append(float(np.mean(losses)))
            losses = []
            bar.set_postfix(loss=f"{history[-1]:.4f}")
            if checkpoint is not None:
                parts = {
                    "unet": unet.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.state_dict(),
                }
                _write(checkpoint, {"identity": identity, "step": step + 1, "history": history, **parts})
    average.copy_to(unet.parameters())
    unet.eval()
    return history


def _turned(patches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Patches, each turned and mirrored in one of eight ways."""
    ways = rng.integers(8, size=len(patches))
    turned = [np.rot90(patch, way % 4)[:, :: 1 if way < 4 else -1] for patch, way in zip(patches, ways, strict=True)]
    return np.ascontiguousarray(np.stack(turned))


def _identity(unet: UNet2DModel, scheduler: Any, patches: np.ndarray, how: Pretraining) -> str:
    """Hash of all that decides how a training goes."""
    digest = hashlib.sha256(np.ascontiguousarray(patches).tobytes())
    digest.update(json.dumps([dict(unet.config), dict(scheduler.config), asdict(how)], default=str).encode())
    for value in unet.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write under another name first: an interruption leaves the last whole checkpoint."""
    part = path.with_name(f".{path.name}.part")
    torch.save(state, part)
    os.replace(part, path)
