"""Noise: what a network of images learns to take away, and how images come of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_MOST_NOISE = 0.9  # share of the variance, of levels that tell patches apart
_LEAST_VARIANCE = 0.05  # of the noise, in the weight of a predicted image


def new_scheduler(n_timesteps: int = 1000) -> DDPMScheduler:
    """Make a cosine schedule that ends in pure noise (Lin et al. 2024), for a network that predicts the image.

    A network of few channels cannot pass on the noise of a whole patch, which predicting noise or v asks for (Li & He 2025).
    """
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=n_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def denoising_loss(
    predict: Predict, scheduler: Any, images: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of each image, (n,), in what the schedule says that a network predicts.

    Of predicted images it is weighted as that of v, but for the least noise.
    """
    error = _prediction_error(predict, scheduler, images, timestep, noise)
    if scheduler.config["prediction_type"] != "sample":
        return error
    variance = 1.0 - scheduler.alphas_cumprod.to(error.device)[timestep]
    return error / variance.clamp_min(_LEAST_VARIANCE)


def noise_error(
    predict: Predict, scheduler: Any, images: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the noise of each image, (n,), whatever the network predicts."""
    error = _prediction_error(predict, scheduler, images, timestep, noise)
    signal = scheduler.alphas_cumprod.to(error.device)[timestep]
    return error * {"sample": signal / (1.0 - signal), "v_prediction": signal}.get(
        scheduler.config["prediction_type"], torch.ones_like(signal)
    )


def _prediction_error(
    predict: Predict, scheduler: Any, images: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    noisy = scheduler.add_noise(images, noise, timestep)
    target = {"sample": images, "epsilon": noise}.get(scheduler.config["prediction_type"])
    target = scheduler.get_velocity(images, noise, timestep) if target is None else target
    return ((predict(noisy, timestep) - target) ** 2).flatten(1).mean(1)


def levels_between(scheduler: Any, n_levels: int) -> tuple[torch.Tensor, float]:
    """Timesteps evenly in the logarithm of the signal-to-noise ratio, (n_levels,), and the length between two.

    They lie where the noise has a tenth to nine tenths of the variance: with less of it fine grain decides, with more of it chance.
    """
    length = 2.0 * math.log(_MOST_NOISE / (1.0 - _MOST_NOISE)) / n_levels
    centred = torch.arange(n_levels) - 0.5 * (n_levels - 1)
    signal = torch.sigmoid(-length * centred)
    distance = (scheduler.alphas_cumprod.cpu()[None] - signal[:, None]).abs()
    return distance.argmin(1), length


def sample(predict: Predict, scheduler: Any, noise: torch.Tensor, n_steps: int) -> torch.Tensor:
    """Turn noise into images along the probability-flow ODE, with a second-order solver (UniPC, Zhao et al. 2023).

    Parameters
    ----------
    predict
        Function of (noisy images, timestep (batch,)) that gives what the schedule says.
    scheduler
        The schedule of the training.
    noise
        Standard normal, (batch, channels, height, width). The images are a function of it.
    n_steps
        Evaluations of the network.

    Raises
    ------
    ValueError
        If `n_steps` is not between 1 and the number of training steps.
    """
    from diffusers import UniPCMultistepScheduler

    most = scheduler.config["num_train_timesteps"]
    if not 1 <= n_steps <= most:
        raise ValueError(f"n_steps must be between 1 and {most}, got {n_steps}")
    solver = UniPCMultistepScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    solver.set_timesteps(n_steps, device=noise.device)
    x = noise
    for timestep in solver.timesteps:
        x = solver.step(predict(x, timestep.expand(len(x))), timestep, x).prev_sample
    return x
