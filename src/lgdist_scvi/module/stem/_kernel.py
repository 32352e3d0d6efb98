"""The expert of Stem: kernel ridge regression of the latent on a patch and the mean of those around it."""

from __future__ import annotations

import torch

from lgdist_scvi.module.experts import Expert
from lgdist_scvi.module.likelihood import Likelihood
from lgdist_scvi.module.stem._basis import LogRates
from lgdist_scvi.module.stem._patches import Patches, TrainingPatches, mean_of_neighbors

_LENGTHS = (0.7, 1.0, 1.5, 2.0, 3.0)  # of the kernel, in units of the root mean square norm of what it compares
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
_N_LANDMARKS = 1500
_SMALLEST_VALUE = 1e-6  # of an eigenvalue of the kernel, relative to the largest


class ImageKernel(Expert):
    """Kernel ridge regression, once for each part of the slides that is left out, and once for all.

    The mean of a Gaussian process with a squared exponential kernel; of more spots than 1,500 the functions around so many, chosen
    at random, are combined (subset of regressors; Rasmussen & Williams 2006, "Gaussian processes for machine learning", section
    8.3.1). Length and penalty are those that predict the counts of left-out slides best. Of a spot that had a part in training the
    prediction is that of the regression without its slide. The exponential of a mean is no mean: a factor of each gene brings the
    predicted rates to the level of those fitted.

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
        self.register_buffer("landmarks", torch.zeros(_N_LANDMARKS, 2 * n_components))
        self.register_buffer("scale", torch.ones(2))  # of the patch, and of those around it
        self.register_buffer("length", torch.tensor(1.0))
        self.register_buffer("penalty", torch.tensor(0.0))
        self.register_buffer("coefficients", torch.zeros(n_folds + 1, _N_LANDMARKS, n_latent))
        self.register_buffer("constant", torch.zeros(n_folds + 1, n_latent))
        self.register_buffer("level", torch.zeros(n_folds + 1, n_genes))

    @torch.no_grad()
    def fit(self, data: TrainingPatches, likelihood: Likelihood, generator: torch.Generator) -> None:
        """Learn, after the basis is set."""
        spots, present = data.spots, data.spots.present[:, 0] > 0
        for part, values in enumerate((spots.image, data.around)):
            norm = values[present].square().sum(1).mean().sqrt()
            self.scale[part] = 1.0 / norm if norm > 0 else 0.0
        design = self._design(spots, data.around)
        known = present.nonzero()[:, 0]
        chosen = known[torch.randperm(len(known), generator=generator)[:_N_LANDMARKS].to(known.device)]
        self.landmarks.zero_()
        self.landmarks[: len(chosen)] = design[chosen]
        n_folds = len(self.coefficients) - 1
        # the rows of a part are no landmarks of the regression without it
        parts = [(present & (spots.fold != fold), spots.fold[chosen] != fold) for fold in range(n_folds)]
        parts.append((present, torch.ones_like(chosen, dtype=torch.bool)))
        exposure, best = likelihood.usable(spots.library), float("inf")
        for length in _LENGTHS:
            kernel = _kernel(design, design[chosen], length)  # (n, n_landmarks)
            regressions = [
                _Regression(kernel[chosen][:, of][of], kernel[rows][:, of], data.latent[rows]) for rows, of in parts
            ]
            for penalty in _PENALTIES:
                loss, fitted = 0.0, []
                for fold, ((rows, of), regression) in enumerate(zip(parts, regressions, strict=True)):
                    coefficients, constant = regression.solve(penalty)
                    level = self._level(kernel[rows][:, of] @ coefficients + constant, data.rate[rows])
                    fitted.append((of, coefficients, constant, level))
                    left_out = present & (spots.fold == fold)
                    if left_out.any():
                        rate = self._rate(kernel[left_out][:, of] @ coefficients + constant, level)
                        error = likelihood.error(
                            likelihood.normalised(rate), spots.counts[left_out], exposure[left_out]
                        )
                        loss += float((error * data.observed[left_out]).sum(dtype=torch.float64))
                if loss < best:
                    best = loss
                    self._keep(length, penalty, fitted)

    def _keep(self, length: float, penalty: float, fitted: list[tuple[torch.Tensor, ...]]) -> None:
        self.length.fill_(length)
        self.penalty.fill_(penalty)
        self.coefficients.zero_()
        for fold, (of, coefficients, constant, level) in enumerate(fitted):
            self.coefficients[fold, : len(of)][of] = coefficients
            self.constant[fold], self.level[fold] = constant, level

    def _design(self, centre: Patches, around: torch.Tensor) -> torch.Tensor:
        return torch.cat([centre.image * self.scale[0], around * self.scale[1]], dim=1) / 2**0.5

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
        kernel = _kernel(self._design(centre, neighborhood), self.landmarks, self.length)  # (batch, n_landmarks)
        fold = torch.full((len(kernel),), -1, device=kernel.device) if centre.fold is None else centre.fold
        latent = torch.empty(len(kernel), self.coefficients.shape[-1], device=kernel.device)
        for one in fold.unique().tolist():
            rows = fold == one
            latent[rows] = kernel[rows] @ self.coefficients[one] + self.constant[one]
        return self._rate(latent, self.level[fold]), centre.present


class _Regression:
    """Kernel ridge regression with any penalty: kernel between landmarks, of spots to them, and the spots' target."""

    def __init__(self, among: torch.Tensor, kernel: torch.Tensor, target: torch.Tensor):
        values, vectors = torch.linalg.eigh(among.double())
        kept = values > _SMALLEST_VALUE * values[-1:].clamp(min=0.0)
        self.whiten = vectors[:, kept] / values[kept].sqrt()  # to functions of unit norm
        features, self.mean = kernel.double() @ self.whiten, target.double().mean(0)
        self.values, self.axes = torch.linalg.eigh(features.T @ features)
        self.moment = self.axes.T @ (features.T @ (target.double() - self.mean))

    def solve(self, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of the landmarks, (n_landmarks, n_latent), and constant, (n_latent,)."""
        weights = self.axes @ (self.moment / (self.values.clamp(min=0.0) + penalty)[:, None])
        return (self.whiten @ weights).float(), self.mean.float()


def _kernel(one: torch.Tensor, other: torch.Tensor, length: torch.Tensor | float) -> torch.Tensor:
    return torch.exp(-0.5 * (torch.cdist(one, other) / length).square())
