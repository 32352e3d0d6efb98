"""The linear expert of Stem: ridge regression of the latent on a patch and the mean of those around it."""

from __future__ import annotations

import torch

from lgdist_scvi.module.experts import Expert
from lgdist_scvi.module.likelihood import Likelihood
from lgdist_scvi.module.stem._basis import LogRates
from lgdist_scvi.module.stem._patches import Patches, TrainingPatches, mean_of_neighbors

_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # per spot


class ImageRidge(Expert):
    """Ridge regression in closed form, once for each part of the slides that is left out, and once for all.

    The penalty is the one that predicts the counts of left-out slides best. Of a spot that had a part in training the prediction
    is that of the regression without its slide. The exponential of a mean is no mean: a factor of each gene brings the predicted
    rates to the level of those fitted.

    Parameters
    ----------
    n_genes, n_latent, n_components
        Lengths of rates, latents and components.
    n_folds
        Number of parts.
    likelihood
        Class that makes rates of scores.
    """

    def __init__(self, n_genes: int, n_latent: int, n_components: int, n_folds: int, likelihood: Likelihood):
        super().__init__(n_genes, None)
        self.basis = LogRates(n_genes, n_latent)
        self.expected = likelihood.expected
        self.register_buffer("coefficients", torch.zeros(n_folds + 1, 2 * n_components + 1, n_latent))
        self.register_buffer("level", torch.zeros(n_folds + 1, n_genes))
        self.register_buffer("penalty", torch.tensor(0.0))

    @torch.no_grad()
    def fit(self, data: TrainingPatches, likelihood: Likelihood, generator: torch.Generator) -> None:
        """Learn, after the basis is set."""
        spots = data.spots
        design, present = self._design(spots, data.around), spots.present[:, 0] > 0
        n_folds = len(self.coefficients) - 1
        parts = [present & (spots.fold != fold) for fold in range(n_folds)] + [present]
        grams = [_gram(design[part], data.latent[part]) for part in parts]
        exposure, best = likelihood.usable(spots.library), float("inf")
        for penalty in _PENALTIES:
            fitted = [_solve(gram, penalty) for gram in grams]
            levels = [self._level(design[part] @ one, data.rate[part]) for part, one in zip(parts, fitted, strict=True)]
            loss = 0.0
            for fold in range(n_folds):
                left_out = present & (spots.fold == fold)
                predicted = likelihood.normalised(self._rate(design[left_out] @ fitted[fold], levels[fold]))
                error = likelihood.error(predicted, spots.counts[left_out], exposure[left_out])
                loss += float((error * data.observed[left_out]).sum(dtype=torch.float64))
            if loss < best:
                best = loss
                self.penalty.fill_(penalty)
                self.coefficients.copy_(torch.stack(fitted))
                self.level.copy_(torch.stack(levels))

    @staticmethod
    def _design(centre: Patches, around: torch.Tensor) -> torch.Tensor:
        return torch.cat([centre.image, around, torch.ones_like(centre.present)], dim=1)

    def _level(self, latent: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """Logarithm of the factor that brings the mean rate of each gene to that of the target, (n_genes,)."""
        predicted = self.expected(self.basis(latent))
        return torch.log(rate.mean(0).clamp(min=1e-9) / predicted.mean(0).clamp(min=1e-9)).clamp(-1.0, 1.0)

    def _rate(self, latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.expected(self.basis(latent) + level)

    def neighborhood(
        self, neighbors: Patches, library: torch.Tensor, index: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        return mean_of_neighbors(neighbors.image, index, valid)

    def forward(
        self, centre: Patches, library: torch.Tensor, neighborhood: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # it knows nothing of a spot without a patch of its own
        design, reliability = self._design(centre, neighborhood), centre.present
        if centre.fold is None:
            return self._rate(design @ self.coefficients[-1], self.level[-1]), reliability
        latent = torch.empty(len(design), self.coefficients.shape[-1], device=design.device)
        for fold in centre.fold.unique().tolist():
            rows = centre.fold == fold
            latent[rows] = design[rows] @ self.coefficients[fold]
        return self._rate(latent, self.level[centre.fold]), reliability


def _gram(design: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    design, target = design.double(), target.double()
    return design.T @ design, design.T @ target, len(design)


def _solve(gram: tuple[torch.Tensor, torch.Tensor, int], penalty: float) -> torch.Tensor:
    """Coefficients; the last one, the constant, is not penalised."""
    matrix, moment, n = gram
    ridge = torch.full((len(matrix),), penalty * max(n, 1), dtype=matrix.dtype, device=matrix.device)
    ridge[-1] = 1e-6 * max(n, 1)
    return torch.linalg.solve(matrix + torch.diag(ridge), moment).float()
