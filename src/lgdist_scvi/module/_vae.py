"""The neighbourhood VAE: a spot's latent from its own visible entries and its neighbours."""

from __future__ import annotations

import torch
from torch import nn

from lgdist_scvi._units import COUNTS_PER
from lgdist_scvi.module._captured import CapturedMixtures
from lgdist_scvi.module._deviations import GeneDeviations
from lgdist_scvi.module._factors import SpatialFactors
from lgdist_scvi.module._layers import CentreBlock, DistanceEncoding, ResidualBlock
from lgdist_scvi.module._likelihood import CountLikelihood, NormalLikelihood
from lgdist_scvi.module._neighborhood import Around, Condition, Spots, sum_of_neighbors
from lgdist_scvi.module._profiles import AveragedMixtures

_LOG_VARIANCE_RANGE = (-9.0, 3.0)
_SMALLEST_RATE = 0.1  # of a linear prediction, as a part of the gene's mean rate
_LARGEST_RATIO = 20.0  # of an expert's prediction to the network's
_LARGEST_SCORE = 10.0  # logarithm of a rate to the gene's mean rate
_GAIN_SCALE = 5.0  # the gains learn faster than other parameters: there is one per gene


class NeighborhoodVAE(nn.Module):
    """Variational autoencoder of a spot in its neighbourhood.

    Parameters
    ----------
    gene_rate
        Mean share of each gene in the library, (n_genes,).
    value_mean, value_scale
        Mean and standard deviation of the observed values of each gene in log1p(CP10K), (n_genes,).
    typical_library
        Median library size in counts.
    loadings
        Scaled principal axes of the standardised values, (n_genes, n_latent): where encoder and decoder start.
    signal
        Share of each score's variance that is not noise, (n_latent,).
    factors
        Loadings of the linear expert, (n_genes, n_factors); of no use to ``"normal"``.
    n_profiles, n_mixtures
        Of the mixture expert.
    likelihood
        ``"nb"``, ``"poisson"`` (counts; zeros are data) or ``"normal"`` (log1p(CP10K) of captured entries).
    closed
        Whether the registered genes make up the library, so that rates sum to 1.
    n_latent, n_hidden, n_layers, n_heads, dropout_rate
        Sizes.
    """

    def __init__(
        self,
        gene_rate: torch.Tensor,
        value_mean: torch.Tensor,
        value_scale: torch.Tensor,
        typical_library: float,
        loadings: torch.Tensor,
        signal: torch.Tensor,
        factors: torch.Tensor,
        n_profiles: int,
        n_mixtures: int,
        likelihood: str,
        closed: bool,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        dropout_rate: float,
    ):
        super().__init__()
        n_genes = len(gene_rate)
        self.counts_are_modelled = likelihood != "normal"
        self.closed = closed
        self.register_buffer("gene_rate", gene_rate)
        self.register_buffer("value_mean", value_mean)
        self.register_buffer("value_scale", value_scale)
        self.register_buffer("typical_library", torch.tensor(float(typical_library)))

        self.embed_value = nn.Linear(n_genes, n_hidden)
        self.embed_visible = nn.Linear(n_genes, n_hidden, bias=False)
        self.embed_depth = nn.Linear(2, n_hidden)
        self.role = nn.Parameter(torch.zeros(2, n_hidden))
        self.embed_distance = DistanceEncoding(n_hidden)
        self.centre = ResidualBlock(n_hidden, dropout_rate)
        self.neighbor = ResidualBlock(n_hidden, dropout_rate)
        self.blocks = nn.ModuleList(CentreBlock(n_hidden, n_heads, dropout_rate) for _ in range(n_layers))
        self.posterior = nn.Sequential(nn.LayerNorm(n_hidden), nn.Linear(n_hidden, 2 * n_latent))

        self.decode_hidden = ResidualBlock(n_latent)
        self.decode_gene = nn.Linear(n_latent, n_genes)
        self.decode_depth = None if self.counts_are_modelled else nn.Linear(2, n_latent)
        self.likelihood = (
            CountLikelihood(n_genes, likelihood == "nb") if self.counts_are_modelled else NormalLikelihood(value_scale)
        )

        self.neighbor_gain = nn.Parameter(torch.full((n_genes,), 0.1 / _GAIN_SCALE))
        self.linear = SpatialFactors(factors) if self.counts_are_modelled else None
        mixtures = AveragedMixtures if self.counts_are_modelled else CapturedMixtures
        self.mixtures = mixtures(gene_rate, n_profiles, n_mixtures)
        n_experts = 2 if self.counts_are_modelled else 1
        # whether experts and deviations have learnt, and with that their say
        self.register_buffer("has_experts", torch.tensor(False))
        # weight of each expert on entries that are visible and hidden, where it knows everything else about a spot
        self.register_buffer("weights_visible", torch.zeros(n_experts, n_genes))
        self.register_buffer("weights_hidden", torch.zeros(n_experts, n_genes))
        # of what genes stray by over slides and around spots, in counts or values; infinite: they do not
        self.register_buffer("regional_shrinkage", torch.full((2,), torch.inf))
        self.deviations = GeneDeviations(n_genes) if self.counts_are_modelled else None
        self._start_from(loadings, signal)

    @torch.no_grad()
    def _start_from(self, loadings: torch.Tensor, signal: torch.Tensor) -> None:
        """Start as principal component analysis of the own entries, so that training learns what that cannot do."""
        n_genes, n_latent = loadings.shape
        norm = loadings.norm(dim=0)
        slope = torch.ones_like(self.value_mean)
        if self.counts_are_modelled:
            # from log1p(CP10K) to the logarithm of the rate, damped where counts are few
            slope = self.value_scale / (1.0 - torch.exp(-self.value_mean)).clamp(min=0.3)
        nn.init.normal_(self.decode_gene.weight, std=0.01)
        self.decode_gene.weight += loadings * signal * slope[:, None]
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

    @property
    def expression(self) -> torch.Tensor:
        """Mean of what is modelled of each gene, (n_genes,): its rate, or its captured log1p(CP10K)."""
        return self.gene_rate if self.counts_are_modelled else self.value_mean

    # ---- encoding

    def usable(self, library: torch.Tensor) -> torch.Tensor:
        """Library size with the typical one where nothing was counted, (n, 1)."""
        return torch.where(library > 0, library, self.typical_library)

    def visible_library(self, spots: Spots) -> torch.Tensor:
        """Library size, in counts (n, 1), without looking at hidden entries.

        Where zeros are data and the genes make up the library, it is estimated from the visible counts and the share of
        the library that their genes usually make up; one pseudo-count's worth of the typical library keeps it finite where
        nothing is visible. Otherwise the registered library is used: where zeros are missing no such share is known, and
        where other genes are in the library the share tells something about the spot.
        """
        if not (self.counts_are_modelled and self.closed):
            return self.usable(spots.library)
        seen = (spots.counts * spots.visible).sum(-1, keepdim=True)
        share = (spots.visible @ self.gene_rate)[:, None]
        return (seen + 1.0) / (share + 1.0 / self.typical_library)

    def _depth(self, library: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.log(library / self.typical_library), visible.mean(-1, keepdim=True)], dim=-1)

    @staticmethod
    def measured(spots: Spots, library: torch.Tensor) -> torch.Tensor:
        """log1p(CP10K) of the visible counts in a library, in counts (n, 1): (n, n_genes), 0 where hidden."""
        return torch.log1p(spots.counts * spots.visible / library * COUNTS_PER)

    def _standardised(self, spots: Spots, library: torch.Tensor) -> torch.Tensor:
        return (self.measured(spots, library) - self.value_mean) / self.value_scale * spots.visible

    def _embed(self, spots: Spots, library: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """One token per spot from value and visibility, entry by entry: (n, n_hidden)."""
        standardised = self._standardised(spots, library)
        if spots.fill is not None:
            standardised = standardised + spots.fill
        return self.embed_value(standardised) + self.embed_visible(spots.visible) + self.embed_depth(depth)

    def residuals(self, spots: Spots, library: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Residuals of the visible counts and their weights, for the linear expert; both (n, n_genes), 0 where hidden.

        Pearson residuals from the gene's mean rate: under Poisson noise their variance is 1 whatever the depth, and the
        signal grows with its square root. `library` is the visible one, (n, 1).
        """
        expected = library * self.gene_rate
        residuals = (spots.counts - expected) / expected.sqrt() * spots.visible
        return residuals, spots.visible * (library / self.typical_library).sqrt()

    def encode_neighbors(
        self,
        neighbors: Spots,
        index: torch.Tensor,
        distance: torch.Tensor,
        valid: torch.Tensor,
        with_experts: bool = True,
    ) -> Around:
        """Summarise the neighbours of each centre.

        Parameters
        ----------
        neighbors
            Every spot that is a neighbour of some centre of the batch, once.
        index
            Rows of `neighbors`, (batch, k).
        distance
            In units of the spot pitch, (batch, k).
        valid
            (batch, k), False where there is no neighbour.
        with_experts
            Whether the experts, if they have learnt yet, have their say.
        """
        library = self.visible_library(neighbors)
        tokens = self.neighbor(self._embed(neighbors, library, self._depth(library, neighbors.visible)) + self.role[1])
        if self.counts_are_modelled:
            counted = sum_of_neighbors(neighbors.counts * neighbors.visible, index, valid)
            expected = sum_of_neighbors(library * neighbors.visible, index, valid) * self.gene_rate
            deviation = torch.log((counted + 1.0) / (expected + 1.0))
        else:
            standardised = self._standardised(neighbors, library)
            n_seen = sum_of_neighbors(neighbors.visible, index, valid)
            deviation = sum_of_neighbors(standardised, index, valid) / (n_seen + 1.0)
        experts = None
        if with_experts and self.has_experts:
            experts = (self.mixtures.around(neighbors.counts, neighbors.visible, library, index, valid),)
            if self.linear is not None:
                experts = (self.linear.around(*self.residuals(neighbors, library), index, valid), *experts)
        return Around(
            tokens=tokens[index] + self.embed_distance(distance),
            valid=valid,
            deviation=deviation,
            experts=experts,
        )

    def encode(self, centre: Spots, around: Around) -> Condition:
        """Posterior of the centre's latent given what is visible, and what else decoding needs."""
        library = self.visible_library(centre)
        depth = self._depth(library, centre.visible)
        own = self.centre(self._embed(centre, library, depth) + self.role[0])
        tokens = torch.cat([own[:, None], around.tokens], dim=1)
        valid = torch.cat([torch.ones_like(around.valid[:, :1]), around.valid], dim=1)
        summary = own
        for block in self.blocks:
            summary = block(summary, tokens, valid)
        mean, log_variance = self.posterior(summary).chunk(2, dim=-1)
        condition = Condition(
            mean=mean,
            log_variance=log_variance.clamp(*_LOG_VARIANCE_RANGE),
            tokens=torch.cat([summary[:, None], tokens], dim=1),
            valid=torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1),
            depth=depth,
            deviation=around.deviation,
        )
        if around.experts is not None:
            condition.experts, condition.reliability = self._expert_predictions(centre, library, around.experts)
            weights = torch.where(centre.visible > 0, self.weights_visible[:, None], self.weights_hidden[:, None])
            condition.correction = self.correction(condition, weights)
            condition.regional = centre.regional
            condition.own = (centre.counts * centre.visible, library * centre.visible)
        return condition

    def _expert_predictions(
        self, centre: Spots, library: torch.Tensor, around: tuple
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions of the experts on the scale of :meth:`decode`, (n_experts, batch, n_genes), and their reliability."""
        mixture = self.mixtures(centre.counts, centre.visible, library, around[-1])
        if self.linear is None:
            return mixture[None], self.mixtures.reliability(centre.counts, centre.visible)
        score, reliability = self.linear(*self.residuals(centre, library), around[0])
        relative = 1.0 + score / (self.typical_library * self.gene_rate).sqrt()
        linear = self.gene_rate * relative.clamp(min=_SMALLEST_RATE)
        return self._close(torch.stack([linear, mixture])), reliability

    def correction(self, condition: Condition, weights: torch.Tensor) -> torch.Tensor:
        """What takes the network's prediction to its average with those of the experts, (batch, n_genes).

        Added to captured values, and to 1 for the factor of rates: it moves samples of the latent together and leaves their
        spread.

        Parameters
        ----------
        condition
            What is known of the batch.
        weights
            Of the experts where they know everything else about a spot, with a sum of at most 1, (n_experts, batch or 1,
            n_genes or 1).
        """
        network = self.network(condition.mean, condition)
        if self.counts_are_modelled:
            full = (condition.experts / network.clamp(min=1e-12)).clamp(max=_LARGEST_RATIO) - 1.0
        else:
            full = condition.experts - network
        return condition.reliability * (weights * full).sum(0)

    # ---- decoding

    def decode(self, latent: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Expected rate (share of the library) or, for ``"normal"``, expected captured log1p(CP10K).

        What a spot :meth:`shared` with others, what genes stray by in its region, and for rates what the own count of each gene
        adds to that.

        Parameters
        ----------
        latent
            (..., batch, n_latent)
        condition
            What is known of the batch.

        Returns
        -------
        (..., batch, n_genes)
        """
        decoded = self.shared(latent, condition)
        if condition.regional is not None:
            if not self.counts_are_modelled:
                return decoded + condition.regional
            decoded = self._close(decoded * condition.regional)
        if condition.own is None or not self.counts_are_modelled:
            return decoded
        return self._close(self.deviations(decoded, *condition.own))

    def shared(self, latent: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The average of what network and experts say, whose errors are of different kinds; as :meth:`decode`."""
        decoded = self.network(latent, condition)
        if condition.correction is None:
            return decoded
        decoded = self.corrected(decoded, condition.correction)
        return self._close(decoded) if self.counts_are_modelled else decoded

    def own_variance(self, decoded: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Variance of an expected value that no latent holds: what is peculiar to one gene in one spot.

        Parameters
        ----------
        decoded, condition
            Output and argument of :meth:`decode`; (batch, n_genes).

        Returns
        -------
        (batch, n_genes), in squared units of `decoded`; 0 for rates where deviations have no say.
        """
        if not self.counts_are_modelled:
            return self.likelihood.lasting_variance.expand_as(decoded)
        if condition.own is None:
            return torch.zeros_like(decoded)
        return decoded**2 * self.deviations.relative_variance(condition.own[0])

    def corrected(self, decoded: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
        """Apply a :meth:`correction`, entry by entry; rates are not brought to a sum of 1."""
        return decoded * (1.0 + correction) if self.counts_are_modelled else decoded + correction

    def network(self, latent: torch.Tensor, condition: Condition) -> torch.Tensor:
        """What the network alone says; as :meth:`decode`."""
        if self.decode_depth is not None:
            # the smallest value that can be captured depends on the library
            latent = latent + self.decode_depth(condition.depth)
        score = self.decode_gene(self.decode_hidden(latent))
        score = score + _GAIN_SCALE * self.neighbor_gain * condition.deviation
        if not self.counts_are_modelled:
            return self.value_mean + self.value_scale * score
        if self.closed:
            return torch.softmax(score + torch.log(self.gene_rate), dim=-1)
        return self.gene_rate * torch.exp(score.clamp(max=_LARGEST_SCORE))

    def _close(self, rate: torch.Tensor) -> torch.Tensor:
        """Rates that sum to 1, where the genes make up the library, (..., batch, n_genes)."""
        return rate / rate.sum(-1, keepdim=True) if self.closed else rate

    def reconstruction(self, decoded: torch.Tensor, counts: torch.Tensor, exposure: torch.Tensor) -> torch.Tensor:
        """Loss on what was measured, entry by entry, in nats, (batch, n_genes).

        Parameters
        ----------
        decoded
            Output of :meth:`decode`, (batch, n_genes).
        counts
            What is fitted, (batch, n_genes).
        exposure
            Library size, in counts, that the rates multiply, (batch, 1) or (batch, n_genes).
        """
        return self.likelihood.training_loss(*self._measured_and_expected(decoded, counts, exposure))

    def error(self, decoded: torch.Tensor, counts: torch.Tensor, exposure: torch.Tensor) -> torch.Tensor:
        """What judges expected values alone, entry by entry, in nats up to a constant; arguments of one shape."""
        return self.likelihood.error(*self._measured_and_expected(decoded, counts, exposure))

    def _measured_and_expected(
        self, decoded: torch.Tensor, counts: torch.Tensor, exposure: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.counts_are_modelled:
            return counts, decoded * exposure + 1e-8
        return torch.log1p(counts / exposure * COUNTS_PER), decoded
