"""The neighbourhood autoencoder: a spot's latent from its own visible entries and its neighbours, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lgdist_scvi.module._spots import Condition, Neighborhood, Spots
from lgdist_scvi.module.nn._layers import CentreBlock, DistanceEncoding, ResidualBlock

if TYPE_CHECKING:
    from lgdist_scvi.module.lgdist._config import LGDiSTConfig
    from lgdist_scvi.module.likelihood import Likelihood

_LOG_VARIANCE_RANGE = (-9.0, 3.0)
_GAIN_SCALE = 5.0  # the gains learn faster than other parameters: there is one per gene


class NeighborhoodAutoencoder(nn.Module):
    """Variational autoencoder of a spot in its neighbourhood.

    Parameters
    ----------
    n_genes
        Number of genes.
    likelihood
        Class of the likelihood.
    compositional
        Whether the registered genes make up the library.
    config
        Sizes.
    """

    def __init__(self, n_genes: int, likelihood: type[Likelihood], compositional: bool, config: LGDiSTConfig):
        super().__init__()
        n_latent, n_hidden, dropout_rate = config.n_latent, config.n_hidden, config.dropout_rate
        self.embed_value = nn.Linear(n_genes, n_hidden)
        self.embed_visible = nn.Linear(n_genes, n_hidden, bias=False)
        self.embed_depth = nn.Linear(2, n_hidden)
        self.role = nn.Parameter(torch.zeros(2, n_hidden))
        self.embed_distance = DistanceEncoding(n_hidden)
        self.centre = ResidualBlock(n_hidden, dropout_rate)
        self.neighbor = ResidualBlock(n_hidden, dropout_rate)
        self.blocks = nn.ModuleList(CentreBlock(n_hidden, config.n_heads, dropout_rate) for _ in range(config.n_layers))
        self.posterior = nn.Sequential(nn.LayerNorm(n_hidden), nn.Linear(n_hidden, 2 * n_latent))

        self.decode_hidden = ResidualBlock(n_latent)
        self.decode_gene = nn.Linear(n_latent, n_genes)
        self.likelihood = likelihood(n_genes, n_latent, compositional)
        self.neighbor_gain = nn.Parameter(torch.full((n_genes,), 0.1 / _GAIN_SCALE))
        nn.init.normal_(self.decode_gene.weight, std=0.01)

    @torch.no_grad()
    def initialise(self, loadings: torch.Tensor, signal: torch.Tensor) -> None:
        """Start as principal component analysis of the own entries, so that training learns what that cannot do.

        Parameters
        ----------
        loadings
            Scaled principal axes of the standardised values, (n_genes, n_latent).
        signal
            Share of each score's variance that is not noise, (n_latent,).
        """
        n_latent = loadings.shape[1]
        norm = loadings.norm(dim=0)
        self.decode_gene.weight += loadings * signal * self.likelihood.initial_slope()[:, None]
        nn.init.zeros_(self.decode_gene.bias)
        nn.init.zeros_(self.decode_hidden.feed_forward[-1].weight)
        n_kept = min(n_latent, self.embed_value.out_features)
        axes = (loadings / norm.clamp(min=1e-6) ** 2).T[:n_kept]
        self.embed_value.weight[:n_kept] = axes * (norm[:n_kept, None] > 1e-3)
        head = self.posterior[-1]
        head.weight[:n_kept] = 0.0
        head.weight[torch.arange(n_kept), torch.arange(n_kept)] = 1.0
        # start almost certain: noise in every dimension would drown the start
        head.weight[n_latent:] *= 0.1
        head.bias[n_latent:] = -4.0

    # ---- encoding

    def _depth(self, library: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        relative = torch.log(library / self.likelihood.typical_library)
        return torch.cat([relative, visible.mean(-1, keepdim=True)], dim=-1)

    def embed(self, spots: Spots, library: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """One token per spot from value and visibility, entry by entry, (n, n_hidden); a subclass may add fields of the spots."""
        standardised = self.likelihood.standardised(spots, library)  # (n, n_genes)
        if spots.prefill is not None:
            standardised = standardised + spots.prefill
        return self.embed_value(standardised) + self.embed_visible(spots.visible) + self.embed_depth(depth)

    def encode_neighbors(
        self,
        neighbors: Spots,
        library: torch.Tensor,
        index: torch.Tensor,
        distance: torch.Tensor,
        valid: torch.Tensor,
    ) -> Neighborhood:
        """Encode the neighbours of each centre.

        Parameters
        ----------
        neighbors
            Every spot that is a neighbour of some centre of the batch, once.
        library
            Their visible library, in counts, (n, 1).
        index, distance, valid
            As in :class:`~lgdist_scvi.module._spots.Inputs`.
        """
        tokens = self.neighbor(self.embed(neighbors, library, self._depth(library, neighbors.visible)) + self.role[1])
        return Neighborhood(
            tokens=tokens[index] + self.embed_distance(distance),  # (batch, k, n_hidden)
            valid=valid,
            log_ratio=self.likelihood.log_ratio(neighbors, library, index, valid),
            experts=None,
        )

    def encode(self, centre: Spots, library: torch.Tensor, neighborhood: Neighborhood) -> Condition:
        """Posterior of the centre's latent given what is visible; `library` is the visible one, (batch, 1)."""
        depth = self._depth(library, centre.visible)
        own = self.centre(self.embed(centre, library, depth) + self.role[0])  # (batch, n_hidden)
        tokens = torch.cat([own[:, None], neighborhood.tokens], dim=1)  # (batch, 1 + k, n_hidden)
        valid = torch.cat([torch.ones_like(neighborhood.valid[:, :1]), neighborhood.valid], dim=1)
        summary = own
        for block in self.blocks:
            summary = block(summary, tokens, valid)
        mean, log_variance = self.posterior(summary).chunk(2, dim=-1)  # (batch, n_latent) each
        return Condition(
            mean=mean,
            log_variance=log_variance.clamp(*_LOG_VARIANCE_RANGE),
            tokens=torch.cat([summary[:, None], tokens], dim=1),
            valid=torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1),
            depth=depth,
            log_ratio=neighborhood.log_ratio,
        )

    # ---- decoding

    def decode(self, latent: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Expected values in the likelihood's unit, (..., batch, n_latent) -> (..., batch, n_genes)."""
        latent = self.likelihood.with_depth(latent, condition.depth)
        score = self.decode_gene(self.decode_hidden(latent))  # (..., batch, n_genes)
        return self.likelihood.expected(score + _GAIN_SCALE * self.neighbor_gain * condition.log_ratio)
