"""Modulation of a frozen network of images by a condition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def modulated_layers(unet: nn.Module) -> dict[str, nn.GroupNorm]:
    """Layers whose output a condition scales and shifts: the second normalisation of each residual block."""
    from diffusers.models.resnet import ResnetBlock2D

    return {name: part.norm2 for name, part in unet.named_modules() if isinstance(part, ResnetBlock2D)}


class Modulation(nn.Module):
    """Scales and shifts of channels by a condition (FiLM, Perez et al. 2018), zero when it is new.

    Parameters
    ----------
    unet
        The network. It stays as it is: :meth:`applied` changes what it computes, for a while.
    n_condition
        Length of a condition.
    n_hidden
        Width of the condition's embedding.
    """

    def __init__(self, unet: UNet2DModel, n_condition: int, n_hidden: int):
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(n_condition, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden), nn.SiLU()
        )
        self.heads = nn.ModuleList(
            nn.Linear(n_hidden, 2 * layer.num_channels) for layer in modulated_layers(unet).values()
        )
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @contextmanager
    def applied(self, unet: UNet2DModel, condition: torch.Tensor) -> Iterator[None]:
        """Modulate the network by conditions, (batch, n_condition), one for each image of the batch."""
        embedded = self.embed(condition)
        handles = []
        try:
            for head, layer in zip(self.heads, modulated_layers(unet).values(), strict=True):
                scale, shift = head(embedded)[:, :, None, None].chunk(2, dim=1)
                handles.append(layer.register_forward_hook(_affine(scale, shift)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _affine(scale: torch.Tensor, shift: torch.Tensor):
    return lambda layer, inputs, output: output * (1.0 + scale) + shift
