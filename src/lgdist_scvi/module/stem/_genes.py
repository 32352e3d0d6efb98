"""The Stem module in gene space: diffusion of the log rates of all genes, one token each, given a spot's own patch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lgdist_scvi import _keys as keys
from lgdist_scvi.module._spots import Posterior
from lgdist_scvi.module.diffusion import GeneDiT
from lgdist_scvi.module.experts import ExpertAverage
from lgdist_scvi.module.stem._basis import GeneLogRates
from lgdist_scvi.module.stem._module import _N_ROUNDS, Batch, StemModule
from lgdist_scvi.module.stem._patches import PatchInputs, on_device


class GeneStemModule(StemModule):
    """The transformer of Zhu et al. (2025), without networks and experts beside it; arguments as of :class:`StemModule`.

    What is diffused are standardised log rates around the genes' mean rates, so that the diffusion carries all that the image says.
    There is one denoiser, of all parts of the slides but the first: what is judged is judged on the first alone.
    """

    def _build(self, n_genes: int) -> None:
        self.basis = GeneLogRates(n_genes)
        self.networks = nn.ModuleList()
        self.experts = ExpertAverage([], n_genes)
        self.diffusion = self._diffusion(n_genes, GeneDiT)

    @property
    def n_judged(self) -> int:
        return 1

    def _mean(self, inputs: PatchInputs) -> torch.Tensor:
        """0, the genes' mean rates, (batch, n_genes)."""
        return self.spread.new_zeros(len(inputs.centre.image), self.diffusion.n_data)

    @torch.no_grad()
    def settle(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        """Bring means and samples of rates to the level of the targets, and fit the dispersion on slides that were not seen.

        The mean of a logarithm is less than the logarithm of the mean.
        """
        self.sample_shift.zero_()
        batches = list(on_device(batches, self.spread.device))
        conditions = [self.condition(batch) for batch in batches]
        means = [self.latent_mean(condition) for condition in conditions]
        # a deep spot tells more, and shallow ones may differ
        exposures = [self.exposure(batch) for batch in batches]
        target = sum(
            (batch[keys.TARGET_RATE] * exposure).sum(0) for batch, exposure in zip(batches, exposures, strict=True)
        )
        for _ in range(_N_ROUNDS):
            parts = zip(means, conditions, exposures, strict=True)
            counts = sum((self.decode(mean, condition) * exposure).sum(0) for mean, condition, exposure in parts)
            self.basis.centre += torch.log(target.clamp(min=1e-9) / counts.clamp(min=1e-9)).clamp(-1.0, 1.0)
        unseen = [batch[keys.FOLD].flatten() == 0 for batch in batches]
        parts = []
        for condition, mean, rows in zip(conditions, means, unseen, strict=True):
            if rows.any():
                names = ("mean", "log_variance", "tokens", "valid")
                there = Posterior(**{name: getattr(condition, name)[rows] for name in names})
                parts.append((there, mean[rows], self._drawn(there, generator)))
        if not parts:  # none of them trains
            return
        self._level_samples(parts)
        self._fit_dispersion(
            [batch | {keys.MASK: batch[keys.MASK] * rows[:, None]} for batch, rows in zip(batches, unseen, strict=True)]
        )
