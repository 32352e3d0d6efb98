"""The expert of Stem: kernel ridge regression of the latent on a patch and the mean of those around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lgdist_scvi.module.experts import Expert
from lgdist_scvi.module.likelihood import Likelihood
from lgdist_scvi.module.stem._basis import LogRates
from lgdist_scvi.module.stem._patches import Patches, TrainingPatches, mean_of_neighbors

_LENGTHS = (0.7, 1.0, 1.5, 2.0, 3.0)  # of the kernel, in units of the root mean square norm of what it compares
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
_N_LANDMARKS = 1500
_N_WITH_SYNTHETIC = 500  # to which generated patches add, where there are fewer of spots
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
    def fit(
        self,
        data: TrainingPatches,
        likelihood: Likelihood,
        generator: torch.Generator,
        lengths: Sequence[float] = _LENGTHS,
    ) -> torch.Tensor:
        """Learn, after the basis is set; `lengths` are tried.

        Generated patches have the surroundings, the part and the target of the spot that they were made for. They are learnt from and
        nothing else.

        Returns
        -------
        The loss of the counts of each spot that has an image, by the regression without its slide, (n_with_image,).
        """
        spots, present = data.spots, data.spots.present[:, 0] > 0
        for part, values in enumerate((spots.image, data.around)):
            norm = values[present].square().sum(1).mean().sqrt()
            self.scale[part] = 1.0 / norm if norm > 0 else 0.0
        n, of_spot, image, weight = len(present), *_images_to_learn_from(data)
        design = self._design(image, data.around[of_spot])
        fold, latent = spots.fold[of_spot], data.latent[of_spot]
        known = present.nonzero()[:, 0]
        chosen = known[torch.randperm(len(known), generator=generator)[:_N_LANDMARKS].to(known.device)]
        generated = torch.arange(n, len(design), device=chosen.device)
        chosen = torch.cat([chosen, generated[: max(0, _N_WITH_SYNTHETIC - len(chosen))]])
        self.landmarks.zero_()
        self.landmarks[: len(chosen)] = design[chosen]
        n_folds = len(self.coefficients) - 1
        # the rows of a part are no landmarks of the regression without it
        parts = [((weight > 0) & (fold != one), fold[chosen] != one) for one in range(n_folds)]
        parts.append((weight > 0, torch.ones_like(chosen, dtype=torch.bool)))
        exposure, lowest, losses = likelihood.usable(spots.library), float("inf"), torch.zeros(n, dtype=torch.float64)
        for length in lengths:
            kernel = _kernel(design, design[chosen], length)  # (n_images, n_landmarks)
            regressions = [
                _Regression(kernel[chosen][:, of][of], kernel[rows][:, of], latent[rows], weight[rows])
                for rows, of in parts
            ]
            for penalty in _PENALTIES:
                found, fitted = torch.zeros_like(losses), []
                for one, ((rows, of), regression) in enumerate(zip(parts, regressions, strict=True)):
                    coefficients, constant = regression.solve(penalty)
                    measured = rows[:n].nonzero()[:, 0]
                    level = self._level(kernel[measured][:, of] @ coefficients + constant, data.rate[measured])
                    fitted.append((of, coefficients, constant, level))
                    left_out = (present & (spots.fold == one)).nonzero()[:, 0]
                    if len(left_out):
                        rate = self._rate(kernel[left_out][:, of] @ coefficients + constant, level)
                        error = likelihood.error(
                            likelihood.normalised(rate), spots.counts[left_out], exposure[left_out]
                        )
                        found[left_out.cpu()] = (error * data.observed[left_out]).sum(1, dtype=torch.float64).cpu()
                if found.sum() < lowest:
                    lowest, losses = float(found.sum()), found
                    self._keep(length, penalty, fitted)
        return losses[known.cpu()]

    def _keep(self, length: float, penalty: float, fitted: list[tuple[torch.Tensor, ...]]) -> None:
        self.length.fill_(length)
        self.penalty.fill_(penalty)
        self.coefficients.zero_()
        for fold, (of, coefficients, constant, level) in enumerate(fitted):
            self.coefficients[fold, : len(of)][of] = coefficients
            self.constant[fold], self.level[fold] = constant, level

    def _design(self, image: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        return torch.cat([image * self.scale[0], around * self.scale[1]], dim=1) / 2**0.5

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
        kernel = _kernel(self._design(centre.image, neighborhood), self.landmarks, self.length)  # (batch, n_landmarks)
        fold = torch.full((len(kernel),), -1, device=kernel.device) if centre.fold is None else centre.fold
        latent = torch.empty(len(kernel), self.coefficients.shape[-1], device=kernel.device)
        for one in fold.unique().tolist():
            rows = fold == one
            latent[rows] = kernel[rows] @ self.coefficients[one] + self.constant[one]
        return self._rate(latent, self.level[fold]), centre.present


class _Regression:
    """Kernel ridge regression with any penalty: kernel between landmarks, of images to them, and the images' target and weight."""

    def __init__(self, among: torch.Tensor, kernel: torch.Tensor, target: torch.Tensor, weight: torch.Tensor):
        values, vectors = torch.linalg.eigh(among.double())
        kept = values > _SMALLEST_VALUE * values[-1:].clamp(min=0.0)
        self.whiten = vectors[:, kept] / values[kept].sqrt()  # to functions of unit norm
        weight, target = weight[:, None], target.double()
        features, self.mean = kernel.double() @ self.whiten, (weight * target).sum(0) / weight.sum()
        self.values, self.axes = torch.linalg.eigh(features.T @ (weight * features))
        self.moment = self.axes.T @ (features.T @ (weight * (target - self.mean)))

    def solve(self, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of the landmarks, (n_landmarks, n_latent), and constant, (n_latent,)."""
        weights = self.axes @ (self.moment / (self.values.clamp(min=0.0) + penalty)[:, None])
        return (self.whiten @ weights).float(), self.mean.float()


def _images_to_learn_from(data: TrainingPatches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spot of each image, its components and its weight: the spots' own first, 0 where there is none, then generated ones."""
    weight = data.spots.present[:, 0].double()
    own = torch.arange(len(weight), device=weight.device)
    if data.synthetic is None or data.synthetic_weight == 0:
        return own, data.spots.image, weight
    there = torch.isfinite(data.synthetic).all(2)
    spot = there.nonzero()[:, 0]
    of_generated = data.synthetic_weight / there.sum(1)[spot].double()
    image = torch.cat([data.spots.image, data.synthetic[there]])
    return torch.cat([own, spot]), image, torch.cat([weight, of_generated])


def _kernel(one: torch.Tensor, other: torch.Tensor, length: torch.Tensor | float) -> torch.Tensor:
    return torch.exp(-0.5 * (torch.cdist(one, other) / length).square())
