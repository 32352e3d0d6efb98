"""The central model of C2L-ST: tissue patches without expression."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scvi import settings

from lgdist_scvi._checks import check_positive_int
from lgdist_scvi.module.c2lst import fold_of, from_network, new_scheduler, new_unet, sample

N_STEPS = 20


class CentralModel:
    """A diffusion model of tissue patches, which knows nothing of expression.

    It is stored as a pipeline of diffusers, a folder with network and schedule.

    Parameters
    ----------
    unet
        A `diffusers.UNet2DModel` of coloured patches: 3 channels, or 3 f^2 of patches folded by f.
    scheduler
        Its schedule, of diffusers.
    record
        How it was trained.
    path
        Folder or name under which it is kept, if it is.

    Raises
    ------
    ValueError
        If the network is none of coloured patches.
    """

    def __init__(self, unet: Any, scheduler: Any, record: Mapping[str, Any] | None = None, path: str | None = None):
        if type(unet).__name__ != "UNet2DModel" or fold_of(unet) is None:
            raise ValueError(
                f"a central model needs a diffusers.UNet2DModel from coloured patches to coloured patches, got {type(unet).__name__}; "
                "C2LST.pretrain(patches) makes one"
            )
        self.unet, self.scheduler = unet.eval(), scheduler
        self.record, self.path = dict(record or {}), path

    @property
    def size(self) -> int:
        """Edge of the patches, in pixels."""
        return self.unet.config["sample_size"] * fold_of(self.unet)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of the noise that a patch is made from."""
        return (self.unet.config["in_channels"],) + (self.unet.config["sample_size"],) * 2

    @property
    def fingerprint(self) -> str:
        """Hash of weights and schedule."""
        digest = hashlib.sha256(json.dumps(_plain(self.scheduler), sort_keys=True).encode())
        for name, value in self.unet.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def generate(self, n: int, n_steps: int = N_STEPS, seed: int | None = None, batch_size: int = 32) -> np.ndarray:
        """Generate patches.

        Parameters
        ----------
        n
            Number of patches.
        n_steps
            Evaluations of the network.
        seed
            Of the noise; ``None``: that of scvi-tools, or 0.
        batch_size
            Patches at a time.

        Returns
        -------
        uint8, (n, size, size, 3).
        """
        check_positive_int(n, "n")
        device = next(self.unet.parameters()).device
        parts = []
        with torch.no_grad():
            for noise in noise_of(n, self.noise_shape, seed).split(batch_size):
                images = sample(lambda x, t: self.unet(x, t).sample, self.scheduler, noise.to(device), n_steps)
                parts.append(from_network(images, fold_of(self.unet)).cpu().numpy())
        return np.concatenate(parts)

    def save(self, path: str | PathLike[str]) -> None:
        """Store the model as a folder that appears when it is whole.

        Raises
        ------
        FileExistsError
            If there is something under this path.
        """
        from diffusers import DDPMPipeline

        target = Path(path)
        if target.exists():
            raise FileExistsError(f"{str(target)!r} exists; remove it or name another folder")
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            DDPMPipeline(unet=self.unet, scheduler=self.scheduler).save_pretrained(part)
            (part / "training.json").write_text(json.dumps(self.record, indent=1))
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self.path = str(target)

    @classmethod
    def load(cls, name: str | PathLike[str]) -> Self:
        """Load a model from a folder, or from the Hugging Face hub by its name.

        Raises
        ------
        ValueError
            If there is none, its weights cannot be had, or it is no model of patches.
        """
        from diffusers import DiffusionPipeline

        name = str(name)
        try:
            pipeline = DiffusionPipeline.from_pretrained(name)
        except Exception as error:  # names, gated weights, broken files and missing networks raise all kinds
            reason = str(error).strip().split("\n")[0][:200]
            raise ValueError(
                f"no central model could be loaded from {name!r} ({reason}); pass a folder that save() wrote or the name of a pipeline of "
                "diffusers, with the network and, for gated models, huggingface-cli login"
            ) from error
        if not {"unet", "scheduler"} <= set(pipeline.components):
            raise ValueError(
                f"{name!r} holds {', '.join(pipeline.components)}; a central model has a unet and a scheduler"
            )
        record = Path(name) / "training.json"
        return cls(pipeline.unet, pipeline.scheduler, json.loads(record.read_text()) if record.exists() else None, name)

    def description(self) -> dict[str, Any]:
        """What identifies the model, without its weights: it is kept with each adapter."""
        return {
            "fingerprint": self.fingerprint,
            "path": self.path,
            "unet": _plain(self.unet),
            "scheduler": _plain(self.scheduler),
        }

    @classmethod
    def without_weights(cls, description: Mapping[str, Any]) -> Self:
        """Make a model of the described shape, whose weights are still to come."""
        import diffusers

        scheduler = getattr(diffusers, description["scheduler"]["_class_name"])
        return cls(
            diffusers.UNet2DModel.from_config(description["unet"]),
            scheduler.from_config(description["scheduler"]),
            path=description["path"],
        )

    @classmethod
    def find(cls, given: CentralModel | str | PathLike[str] | None, description: Mapping[str, Any]) -> CentralModel:
        """Find the model that an adapter was trained on.

        Raises
        ------
        ValueError
            If it is not there, or another one.
        """
        if given is None and description["path"] is None:
            raise ValueError("the central model of this adapter was not saved; pass it: C2LST.load(..., central=...)")
        central = (
            given if isinstance(given, CentralModel) else cls.load(description["path"] if given is None else given)
        )
        if central.fingerprint != description["fingerprint"]:
            raise ValueError(
                f"the central model{f' in {central.path!r}' if central.path else ''} is not the one that the adapter was trained on: "
                "its weights differ; pass the right one as central=..."
            )
        return central

    def __repr__(self) -> str:
        n = sum(value.numel() for value in self.unet.parameters())
        return f"CentralModel of {self.size} x {self.size} pixels, {n:,} parameters{f', in {self.path!r}' if self.path else ''}"


def new_central(size: int, channels: tuple[int, ...], fold: int, seed: int) -> CentralModel:
    """Make an untrained model; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CentralModel(new_unet(size, channels, fold), new_scheduler())


def noise_of(n: int, shape: tuple[int, ...], seed: int | None) -> torch.Tensor:
    """Noise of n patches, float32 (n, *shape): the first ones are the same for any n."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed_of(seed)))


def seed_of(seed: int | None) -> int:
    """A seed, or that of scvi-tools, or 0."""
    return int((settings.seed or 0) if seed is None else seed)


def _plain(part: Any) -> dict[str, Any]:
    """Class and settings of a network or schedule, without what depends on versions and places."""
    kept = {name: value for name, value in part.config.items() if not name.startswith("_")}
    return {"_class_name": type(part).__name__, **kept}
