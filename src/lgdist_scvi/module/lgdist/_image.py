"""The image: what it adds to the posterior of a spot's latent, and its tokens for the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from lgdist_scvi.module._spots import Condition, sum_of_neighbors
from lgdist_scvi.module.lgdist._config import LGDiSTConfig
from lgdist_scvi.module.nn._image_components import ImageComponents


class Surroundings(NamedTuple):
    """Image of the neighbours of each centre.

    `mean` is the mean of their components, (batch, n_components), `tokens` one for each of them, (batch, k, n_hidden), and `valid`
    False where there is no neighbour with an image, (batch, k).
    """

    mean: torch.Tensor
    tokens: torch.Tensor
    valid: torch.Tensor


class ImageCondition(nn.Module):
    """The image as a condition: a shift of the latent's posterior, and one token for each spot and each neighbour.

    The shift is linear in the components of the own patch and in the mean of those of the neighbours. It has one weight for spots of
    which nothing is visible and one for others, chosen on held-out entries; where both are 0 the image is not in use, and
    everything is as without one. A spot without an image of its own is not shifted.

    Parameters
    ----------
    blocks
        Number of image features of each encoder.
    config
        Sizes.
    """

    def __init__(self, blocks: Sequence[int], config: LGDiSTConfig):
        super().__init__()
        self.components = ImageComponents(blocks, config.n_image_components)
        n_components = self.components.n_components
        self.register_buffer("coefficients", torch.zeros(2 * n_components, config.n_latent))
        self.register_buffer("weight_hidden", torch.tensor(0.0))
        self.register_buffer("weight_visible", torch.tensor(0.0))
        # the denoiser learns what to make of tokens: here it is enough that they differ
        axes = torch.empty(config.n_hidden, n_components)
        nn.init.orthogonal_(axes, generator=torch.Generator().manual_seed(0))
        self.register_buffer("axes", axes)
        self.register_buffer("role", nn.functional.one_hot(torch.arange(2), config.n_hidden).float())

    @property
    def in_use(self) -> bool:
        """Whether the image changes anything."""
        return bool(self.weight_hidden) or bool(self.weight_visible)

    def reset(self) -> None:
        """Leave the image out."""
        self.weight_hidden.zero_()
        self.weight_visible.zero_()

    def surroundings(self, image: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> Surroundings:
        """Image of the neighbours of each centre.

        Parameters
        ----------
        image
            Components of every spot that is a neighbour of some centre, (n, n_components), NaN where there is none.
        index, valid
            Rows of a centre's neighbours among these, and False where there is no neighbour, (batch, k).
        """
        values, present = known(image)
        valid = valid.bool() & present[index, 0]
        mean = sum_of_neighbors(values, index, valid) / valid.sum(1, keepdim=True).clamp(min=1)
        return Surroundings(mean, self._tokens(values, 1)[index], valid)

    def shift(self, image: torch.Tensor, around: Surroundings) -> torch.Tensor:
        """Shift of the latent at a weight of 1, (batch, n_latent), 0 without an own image; `image` is (batch, n_components)."""
        values, present = known(image)
        return present * (torch.cat([values, around.mean], dim=1) @ self.coefficients)

    def weight(self, visible: torch.Tensor) -> torch.Tensor:
        """Weight of the shift of each spot, (batch, 1)."""
        return torch.where(visible.any(1, keepdim=True), self.weight_visible, self.weight_hidden)

    def forward(
        self, condition: Condition, image: torch.Tensor, visible: torch.Tensor, around: Surroundings
    ) -> Condition:
        """Condition of spots that have an image, and tokens of it.

        Parameters
        ----------
        condition
            Without the image.
        image, visible
            Components, (batch, n_components), and visible entries, (batch, n_genes), of the spots.
        around
            Image of their neighbours.
        """
        values, present = known(image)
        tokens = torch.cat([condition.tokens, self._tokens(values, 0)[:, None], around.tokens], dim=1)
        return replace(
            condition,
            mean=condition.mean + self.weight(visible) * self.shift(image, around),
            tokens=tokens,
            valid=torch.cat([condition.valid, present, around.valid], dim=1),
        )

    def _tokens(self, values: torch.Tensor, role: int) -> torch.Tensor:
        return values @ self.axes.T + self.role[role]


def known(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Components, 0 where there is no image, (n, n_components), and whether there is one, (n, 1)."""
    present = torch.isfinite(image).all(dim=1, keepdim=True)
    return torch.where(present, image, 0.0), present


def hidden_at_random(image: torch.Tensor, share: float) -> torch.Tensor:
    """Components of which a share of the spots lacks all, (n, n_components)."""
    return torch.where(torch.rand(len(image), 1, device=image.device) < share, torch.nan, image)
