"""The local model: a frozen network of images, modulated by expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass

from lgdist_scvi import _keys as keys
from lgdist_scvi.module.c2lst._adapter import Modulation
from lgdist_scvi.module.c2lst._condition import ExpressionScores
from lgdist_scvi.module.c2lst._images import fold_of, from_network, to_network
from lgdist_scvi.module.c2lst._noise import denoising_loss, levels_between, noise_error, sample

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class C2LSTModule(BaseModuleClass):
    """Patches given expression.

    Its parameters are those of the adapter.

    Parameters
    ----------
    unet, scheduler
        Network and schedule of the central model.
    n_genes
        Number of genes.
    n_scores
        Principal axes of expression that are the condition.
    n_hidden
        Width of the adapter.
    drop_condition
        Share of training patches of which no gene is shown, for guidance.
    hide_genes
        Share of training batches in which a random part of the genes is shown.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        n_genes: int,
        n_scores: int,
        n_hidden: int,
        drop_condition: float,
        hide_genes: float,
    ):
        super().__init__()
        # no part of the module: it is neither trained nor saved, and an average of equal weights would differ from them by rounding
        self._central = (unet.requires_grad_(False).eval(),)
        self.scheduler = scheduler
        self.fold = fold_of(unet)
        self.scores = ExpressionScores(n_genes, n_scores)
        self.modulation = Modulation(unet, self.scores.n_condition, n_hidden)
        self.drop_condition, self.hide_genes = drop_condition, hide_genes

    # scvi-tools' three steps play no part
    _get_inference_input = _get_generative_input = inference = generative = None

    @property
    def unet(self) -> UNet2DModel:
        """The central network, where the adapter is."""
        return self._central[0].to(self.scores.centre.device)

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """What the network predicts of noisy images under conditions, (n, n_condition)."""
        with self.modulation.applied(self.unet, condition):
            return self.unet(x, timestep).sample

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator | None = None) -> torch.Tensor:
        """Mean squared error of the denoising; with a generator, of all genes and always the same noise."""
        images = to_network(batch[keys.PATCH], self.fold)
        n, device = len(images), images.device

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator).to(device)

        known = None
        if generator is None and uniform(1) < self.hide_genes:
            known = uniform(len(self.scores.centre)) < uniform(1)
        condition = self.scores(batch[REGISTRY_KEYS.X_KEY], known)
        if generator is None:
            condition = torch.where(uniform(n, 1) < self.drop_condition, 0.0, condition)
        # evenly over the noise levels
        timestep = (torch.arange(n, device=device) + uniform(1)) / n * self.scheduler.config["num_train_timesteps"]
        noise = torch.randn(images.shape, generator=generator).to(device)
        return denoising_loss(
            lambda x, t: self.predict(x, t, condition), self.scheduler, images, timestep.long(), noise
        ).mean()

    @torch.no_grad()
    def generate(
        self, condition: torch.Tensor, noise: torch.Tensor, guidance_scale: float, n_steps: int
    ) -> torch.Tensor:
        """Generate a patch for each condition.

        Parameters
        ----------
        condition
            (n, n_condition).
        noise
            Standard normal, (n, channels, height, width) of the network.
        guidance_scale
            How far to go from what is predicted without any gene to what is predicted with them: 1 is all the way and not beyond.
        n_steps
            Steps of the sampler; each evaluates the network twice, or once where `guidance_scale` is 0 or 1.

        Returns
        -------
        uint8, (n, size, size, 3).
        """
        nothing = torch.zeros_like(condition)

        def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            if guidance_scale in (0, 1):
                return self.predict(x, timestep, condition if guidance_scale else nothing)
            both = self.predict(x.repeat(2, 1, 1, 1), timestep.repeat(2), torch.cat([nothing, condition]))
            without, with_genes = both.chunk(2)
            return without + guidance_scale * (with_genes - without)

        return from_network(sample(predict, self.scheduler, noise, n_steps), self.fold)

    @torch.no_grad()
    def log_likelihood(self, patches: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Variational bound of the likelihood of patches under conditions, but for a constant of each patch.

        Parameters
        ----------
        patches
            uint8 (n, size, size, 3).
        condition
            (n, n_condition).
        noise
            Standard normal, of each noise level, (n_levels, channels, height, width) of the network.

        Returns
        -------
        float64 (n,).
        """
        images = to_network(patches.to(condition.device), self.fold)
        timesteps, length = levels_between(self.scheduler, len(noise))
        found = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for timestep, one in zip(timesteps.to(images.device), noise.to(images.device), strict=True):
            shared = self.scheduler, images, timestep.expand(len(images)), one.expand_as(images)
            found -= 0.5 * length * images[0].numel() * noise_error(lambda x, t: self.predict(x, t, condition), *shared)
        return found
