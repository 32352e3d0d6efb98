"""The average of the network's prediction with those of the experts, and its weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lgdist_scvi.module._spots import Spots
from lgdist_scvi.module.experts._base import Expert
from lgdist_scvi.module.likelihood import Likelihood

_N_WEIGHTS = 10  # weights are multiples of a tenth
_N_SHARED = 500  # entries of all genes, as many as count in every group


class HeldOutBatch(NamedTuple):
    """A batch that chooses weights: predictions, (batch, n_genes), and what they are judged by.

    `experts` are the experts' predictions, (n_experts, batch, n_genes), `reliability` how reliable they are,
    (batch, 1), `scored` the held-out entries, bool, `exposure` the library size of the target.
    """

    network: Tensor
    experts: Tensor
    reliability: Tensor
    target: Tensor
    exposure: Tensor
    scored: Tensor


class ExpertAverage(nn.Module):
    """Weighted average of the network and at least one expert, whose errors are of different kinds."""

    def __init__(self, experts: Iterable[Expert], n_genes: int):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.register_buffer("in_use", torch.tensor(False))  # whether the experts are fitted
        # weight of each expert on visible and hidden entries, where it knows everything else about a spot
        self.register_buffer("weights_visible", torch.zeros(len(self.experts), n_genes))
        self.register_buffer("weights_hidden", torch.zeros(len(self.experts), n_genes))

    def weights_of(self, hold_out: str) -> Tensor:
        """Weights that entries held out in this way choose, (n_experts, n_genes)."""
        return {"set_aside": self.weights_hidden, "split": self.weights_visible}[hold_out]

    def neighborhood(self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor) -> list[Any]:
        """What each expert takes from the neighbours; see :class:`Expert`."""
        return [expert.neighborhood(neighbors, library, index, valid) for expert in self.experts]

    def predict(self, centre: Spots, library: Tensor, neighborhood: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Predictions of the experts, (n_experts, batch, n_genes), not normalised, and how reliable they are, (batch, 1)."""
        pairs = [expert(centre, library, part) for expert, part in zip(self.experts, neighborhood, strict=True)]
        known = next((reliability for _, reliability in pairs if reliability is not None), torch.ones_like(library))
        return torch.stack([values for values, _ in pairs]), known

    def weights(self, visible: Tensor) -> Tensor:
        """Weight of each expert on each entry, (n_experts, batch, n_genes)."""
        return torch.where(visible > 0, self.weights_visible[:, None], self.weights_hidden[:, None])


def correction(
    likelihood: Likelihood,
    network: Tensor,
    experts: Tensor,
    reliability: Tensor,
    weights: Tensor,
) -> Tensor:
    """What takes the network's prediction to its average with those of the experts, (batch, n_genes).

    It moves samples of the latent together and leaves their spread. `network` is the prediction at the posterior mean,
    (batch, n_genes), `experts` and `reliability` are the output of :meth:`ExpertAverage.predict`, and `weights` have a
    sum of at most 1, (n_experts, batch or 1, n_genes or 1).
    """
    return reliability * (weights * likelihood.relative(experts, network)).sum(0)


def best_weights(likelihood: Likelihood, n_experts: int, batches: Iterable[HeldOutBatch]) -> Tensor:
    """Weights of the experts that predict held-out entries best, (n_experts, n_genes)."""
    candidates = _candidates(n_experts).to(likelihood.gene_rate)
    n_groups, n_genes = likelihood.n_weight_groups, len(likelihood.gene_rate)
    group = likelihood.gene_rate.argsort().argsort() * n_groups // n_genes
    losses, n_scored = candidates.new_zeros(len(candidates), n_groups), 0  # by weights and group of genes
    alone = torch.eye(n_experts, device=candidates.device)[:, :, None, None]
    for network, experts, reliability, target, exposure, scored in batches:
        target, exposure = target[scored], exposure.expand_as(network)[scored]  # (n_entries,)
        full = torch.stack(
            [correction(likelihood, network, experts, reliability, one)[scored] for one in alone]
        )  # (n_experts, n_entries)
        group_of_entry = group.expand_as(scored)[scored]
        n_scored += len(target)
        for place, weights in enumerate(candidates):
            error = likelihood.error(likelihood.corrected(network[scored], weights @ full), target, exposure)
            losses[place].index_add_(0, group_of_entry, error)
    losses += _N_SHARED / max(n_scored, 1) * losses.sum(1, keepdim=True)
    return candidates[losses.argmin(0)].T[:, group]


def _candidates(n_experts: int) -> Tensor:
    """All weights that leave something, or nothing, to the network, (n_candidates, n_experts)."""
    tenths = itertools.product(range(_N_WEIGHTS + 1), repeat=n_experts)
    return torch.tensor([weights for weights in tenths if sum(weights) <= _N_WEIGHTS]) / _N_WEIGHTS
