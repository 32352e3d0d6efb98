"""Noise: what a network of images learns to take away, and how images come of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def new_scheduler(n_timesteps: int = 1000) -> DDPMScheduler:
    """Make a cosine schedule that ends in pure noise, with v-prediction (Lin et al. 2024)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=n_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def denoising_loss(
    predict: Predict, scheduler: Any, images: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of each image, (n,), in what the schedule says that a network predicts."""
    noisy = scheduler.add_noise(images, noise, timestep)
    kind = scheduler.config["prediction_type"]
    target = scheduler.get_velocity(images, noise, timestep) if kind == "v_prediction" else noise
    target = images if kind == "sample" else target
    return ((predict(noisy, timestep) - target) ** 2).flatten(1).mean(1)


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
