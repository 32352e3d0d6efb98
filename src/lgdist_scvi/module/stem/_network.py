"""The network of Stem: the mean of a spot's latent from its own patch and those around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lgdist_scvi.module.nn._layers import CentreBlock, DistanceEncoding, ResidualBlock
from lgdist_scvi.module.stem._patches import PatchInputs

if TYPE_CHECKING:
    from lgdist_scvi.module.stem._config import StemConfig


class PatchNetwork(nn.Module):
    """Attention of a spot's patch over the patches around it.

    In training, whole patches are hidden at random, so that a spot without an image is nothing new.
    """

    def __init__(self, config: StemConfig, n_components: int):
        super().__init__()
        n_hidden, dropout_rate = config.n_hidden, config.dropout_rate
        self.hide_patch = config.hide_patch
        self.drop = nn.Dropout(dropout_rate)
        self.embed = nn.Linear(n_components, n_hidden)
        self.role = nn.Parameter(torch.zeros(2, n_hidden))
        self.missing = nn.Parameter(torch.zeros(n_hidden))
        self.embed_distance = DistanceEncoding(n_hidden)
        self.patch = ResidualBlock(n_hidden, dropout_rate)
        self.blocks = nn.ModuleList(CentreBlock(n_hidden, config.n_heads, dropout_rate) for _ in range(config.n_layers))
        self.head = nn.Sequential(
            nn.LayerNorm(n_hidden), nn.Dropout(dropout_rate), nn.Linear(n_hidden, config.n_latent)
        )
        nn.init.normal_(self.head[-1].weight, std=0.01)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, inputs: PatchInputs) -> torch.Tensor:
        """Mean of the latent, (batch, n_latent)."""
        centre, neighbors = inputs.centre, inputs.neighbors
        present, valid = centre.present, inputs.valid
        if self.training and self.hide_patch:
            present = present * (torch.rand_like(present) >= self.hide_patch)
            valid = valid & (torch.rand_like(inputs.distance) >= self.hide_patch)
        embedded = self.embed(self.drop(centre.image))
        own = self.patch(torch.where(present > 0, embedded, self.missing) + self.role[0])
        others = self.patch(self.embed(self.drop(neighbors.image)) + self.role[1])
        others = others[inputs.index] + self.embed_distance(inputs.distance)
        tokens = torch.cat([own[:, None], others], dim=1)
        valid = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)
        summary = own
        for block in self.blocks:
            summary = block(summary, tokens, valid)
        return self.head(summary)
