"""Noise schedule and samplers around a denoiser, with diffusers; knows nothing of genes or neighbourhoods."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]


class GaussianDiffusion:
    """Variance-preserving diffusion with v-prediction (Salimans & Ho 2022, appendix D), in `n_timesteps` noise steps.

    The schedule ends in pure noise (zero terminal signal-to-noise ratio, Lin et al. 2024). There the target is minus
    the data, so that one evaluation of the denoiser at the last timestep is the posterior mean.
    """

    def __init__(self, n_timesteps: int = 1000):
        self.n_timesteps = n_timesteps

    @cached_property
    def schedule(self) -> Any:
        """The training schedule, a `diffusers.DDIMScheduler`."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            num_train_timesteps=self.n_timesteps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            clip_sample=False,
        )

    @cached_property
    def _angles(self) -> Tensor:
        """Arc cosine of the signal at each timestep, from about 0 to pi / 2, (n_timesteps,)."""
        return self.schedule.alphas_cumprod.double().sqrt().arccos()

    def training_pair(self, data: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Noise the data, and give what the denoiser should predict: noisy data and the v-target, (batch, ...) each.

        `timestep` are integers below `n_timesteps`, (batch,).
        """
        noisy = self.schedule.add_noise(data, noise, timestep)
        return noisy, self.schedule.get_velocity(data, noise, timestep)

    def posterior_mean(self, predict: Predict, noise: Tensor) -> Tensor:
        """Expected data given the condition: one evaluation of `predict`, as in :meth:`sample`, at the noisiest step.

        `noise` carries shape and device; the last step holds no signal, so zeros do.
        """
        timestep = torch.full(noise.shape[:1], self.n_timesteps - 1, device=noise.device)
        return -predict(noise, timestep)

    def sample(self, predict: Predict, noise: Tensor, n_steps: int, mean: Tensor | None = None) -> Tensor:
        """Turn noise into samples along the probability-flow ODE.

        In the angle phi of the schedule, where x = cos(phi) data + sin(phi) noise, the flow is dx / dphi = v, and v of data
        N(mean, 1) is -sin(phi) mean. That part is integrated exactly, and what differs from it by the second-order method of
        Adams and Bashforth: data near a standard Gaussian need few steps.

        Parameters
        ----------
        predict
            Function of (noisy data, timestep (batch,)) that gives v.
        noise
            Standard normal, (batch, ...). The samples are a function of it: same noise, same samples.
        n_steps
            Evaluations of the denoiser, evenly spaced over the training schedule.
        mean
            What :meth:`posterior_mean` gives, which is the first evaluation, if it is known; of a shape that `noise` can be
            added to.

        Raises
        ------
        ValueError
            If `n_steps` is not between 1 and the number of training steps.
        """
        if not 1 <= n_steps <= self.n_timesteps:
            raise ValueError(f"n_steps must be between 1 and {self.n_timesteps}, got {n_steps}")
        if mean is None:
            mean = self.posterior_mean(predict, torch.zeros_like(noise))
        timesteps = [self.n_timesteps - 1 - i * self.n_timesteps // n_steps for i in range(n_steps)]
        angles = [*self._angles[timesteps].tolist(), 0.0]
        x = noise + math.cos(angles[1]) * mean  # the first step: v is -mean
        before, stride_before = torch.zeros_like(mean), angles[0] - angles[1]
        for timestep, angle, then in zip(timesteps[1:], angles[1:], angles[2:], strict=False):
            slope = predict(x, torch.full(x.shape[:1], timestep, device=x.device)) + math.sin(angle) * mean
            stride = angle - then
            # of a line through this slope and the one before, the mean over the stride
            x = (
                x
                + (math.cos(then) - math.cos(angle)) * mean
                - stride * torch.lerp(before, slope, 1 + stride / stride_before / 2)
            )
            before, stride_before = slope, stride
        return x
