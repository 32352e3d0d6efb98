"""The network of the central model, and patches as it sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

if TYPE_CHECKING:
    from diffusers import UNet2DModel

MAX_FOLD = 8
_GROUPS = 16  # of channels that are normalised together


def new_unet(size: int, channels: Sequence[int], fold: int) -> UNet2DModel:
    """Make a network for patches of `size` pixels.

    Parameters
    ----------
    size
        Edge of the patches.
    channels
        Channels at each resolution, from fine to coarse, multiples of 16.
    fold
        Edge of the squares of pixels that are folded into channels: the network works on ``size / fold`` places, each with
        3 fold^2 colours, which costs about 1 / fold^2 of the time.

    Raises
    ------
    ValueError
        If the sizes do not fit each other.
    """
    from diffusers import UNet2DModel

    step = fold * 2 ** (len(channels) - 1)
    if not 1 <= fold <= MAX_FOLD or not channels or size % step:
        raise ValueError(
            f"size={size} must be a multiple of fold * 2^(number of channels - 1) = {step}, and fold be from 1 to {MAX_FOLD}"
        )
    if bad := [number for number in channels if number % _GROUPS or number < 1]:
        raise ValueError(f"channels must be multiples of {_GROUPS}, got {bad}")
    return UNet2DModel(
        sample_size=size // fold,
        in_channels=3 * fold**2,
        out_channels=3 * fold**2,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=_GROUPS,
        resnet_time_scale_shift="scale_shift",
    )


def fold_of(unet: UNet2DModel) -> int | None:
    """Edge of the squares of pixels that a network sees as channels; ``None`` if it sees no coloured patches."""
    config = unet.config
    fold = round((config["in_channels"] / 3) ** 0.5)
    fits = 1 <= fold <= MAX_FOLD and config["in_channels"] == config["out_channels"] == 3 * fold**2
    return fold if fits else None


def to_network(patches: torch.Tensor, fold: int) -> torch.Tensor:
    """Patches, uint8 (n, size, size, 3), as float in [-1, 1], (n, 3 fold^2, size / fold, size / fold)."""
    return pixel_unshuffle(patches.permute(0, 3, 1, 2).float() / 127.5 - 1.0, fold)


def from_network(images: torch.Tensor, fold: int) -> torch.Tensor:
    """The inverse of :func:`to_network`, clipped and rounded."""
    whole = pixel_shuffle(images, fold).permute(0, 2, 3, 1)
    return ((whole + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
