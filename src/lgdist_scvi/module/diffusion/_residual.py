"""Diffusion of a scaled residual around a mean, under any condition tokens: loss, mean and samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lgdist_scvi.module.diffusion._process import GaussianDiffusion
from lgdist_scvi.module.diffusion._vector_dit import VectorDiT


class ResidualDiffusion(nn.Module):
    """Diffusion of a vector's difference from a given mean, in units of a given spread.

    The spread follows how much is hidden, so that what is diffused has unit variance whatever is hidden. Until
    the diffusion is trained, the vector is Gaussian with this mean and spread.

    Parameters
    ----------
    n_data
        Length of the vector.
    n_condition
        Width of the condition tokens.
    n_hidden, n_layers, n_heads
        Sizes of the denoiser.
    n_timesteps
        Noise steps in training.
    n_draws
        Noise draws per condition in a training step.
    denoiser
        Class of the denoiser, :class:`VectorDiT` or one with its arguments.
    """

    def __init__(
        self,
        n_data: int,
        n_condition: int,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        n_timesteps: int,
        n_draws: int,
        denoiser: type[nn.Module] = VectorDiT,
    ):
        super().__init__()
        self.denoiser = denoiser(n_data, n_condition, n_hidden, n_layers, n_heads)
        self.process = GaussianDiffusion(n_timesteps)
        self.n_data, self.n_draws = n_data, n_draws
        self.register_buffer("scale", torch.ones(n_data))  # of the residual in units of the spread
        self.register_buffer("trained", torch.tensor(False))

    @property
    def n_timesteps(self) -> int:
        """Noise steps in training."""
        return self.process.n_timesteps

    def set_scale(self, mean_squares: Tensor) -> None:
        """Set the scale of the residuals from their mean squares in units of the spread, (n_batches, n_data)."""
        self.scale.copy_(mean_squares.mean(0).sqrt())

    def noise(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Noise of a training step, for the target and for the process, (2, batch, n_draws, n_data)."""
        return torch.randn(2, batch, self.n_draws, self.n_data, generator=generator, device=device)

    def noised(
        self,
        target: Tensor,
        noise: Tensor,
        mean: Tensor,
        spread: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise the residuals of vectors, under timesteps that `generator` draws.

        `target` and `noise` are (batch, n_draws, n_data), `mean` and `spread` (batch, n_data). Gives noisy residuals
        and v-targets, (batch, n_draws, n_data), and timesteps, (batch, n_draws).
        """
        residual = (target - mean[:, None]) / (self.scale * spread)[:, None]
        timestep = self._timesteps(len(mean), generator, mean.device)
        # the process sees one batch of (batch * n_draws) vectors
        noisy, velocity = self.process.training_pair(
            residual.flatten(0, 1), noise.reshape(-1, self.n_data), timestep.flatten()
        )
        return noisy.view_as(residual), velocity.view_as(residual), timestep

    def loss(
        self,
        noised: tuple[Tensor, Tensor, Tensor],
        mean: Tensor,
        spread: Tensor,
        tokens: Tensor,
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of v (0 to about 1), and the posterior mean of the vector, (batch, n_data).

        `noised` is the output of :meth:`noised`, with the same `mean` and `spread`; `tokens` and `valid` are as in
        :class:`VectorDiT`.
        """
        noisy, velocity, timestep = noised
        predicted = self.denoiser(noisy, timestep, self.denoiser.given(tokens, valid))  # (batch, n_draws, n_data)
        error = ((predicted - velocity) ** 2).mean()
        # the first draw sits at the noisiest step, where the prediction is minus the posterior mean
        return error, mean - self.scale * spread * predicted[:, 0]

    def _timesteps(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """One draw at the noisiest step, the others stratified over the schedule, (batch, n_draws)."""
        n_strata = self.n_draws - 1
        uniform = torch.rand(batch, n_strata, generator=generator, device=device)
        strata = (torch.arange(n_strata, device=device) + uniform) / max(n_strata, 1)
        timestep = (strata * self.n_timesteps).long().clamp(max=self.n_timesteps - 1)
        return torch.cat([timestep.new_full((batch, 1), self.n_timesteps - 1), timestep], dim=1)

    def mean(self, mean: Tensor, spread: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """Posterior mean of the vector, (batch, n_data): one evaluation of the denoiser; arguments as in :meth:`loss`."""
        if not self.trained:
            return mean
        return mean + self.scale * spread * self._residual_mean(self.denoiser.given(tokens, valid), mean[:, None])[:, 0]

    def _residual_mean(self, given: Any, like: Tensor) -> Tensor:
        """Posterior mean of the scaled residual under a condition, (batch, 1, n_data), as of `like`."""
        return self.process.posterior_mean(lambda x, t: self.denoiser(x, t[:, None], given), torch.zeros_like(like))

    def sample(
        self,
        mean: Tensor,
        spread: Tensor,
        tokens: Tensor,
        valid: Tensor,
        noise: Tensor,
        n_steps: int,
    ) -> Tensor:
        """Samples of the vector from noise, both (batch, n_samples, n_data); other arguments as in :meth:`loss`."""
        if not self.trained:
            return mean[:, None] + spread[:, None] * noise
        given = self.denoiser.given(tokens, valid)
        # samples share the first evaluation: what is noisiest holds nothing of the vector
        residual = self.process.sample(
            lambda x, t: self.denoiser(x, t[:, None], given), noise, n_steps, self._residual_mean(given, mean[:, None])
        )
        return mean[:, None] + (self.scale * spread)[:, None] * residual
