"""The linear expert: factor analysis of a spot's own entries, and what its neighbours add to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from lgdist_scvi.module._spots import Spots, sum_of_neighbors
from lgdist_scvi.module.experts._base import Expert, ExpertSizes, TrainingSpots
from lgdist_scvi.module.likelihood import Likelihood

_SMALLEST_RATE = 0.1  # of a linear prediction, as a part of the gene's mean rate
_HIDDEN_FOR_NEIGHBORS = 0.1
_N_STEPS = 10


class FactorAnalysis(Expert):
    """Factor analysis with exact inference for any pattern of missing entries, corrected by the neighbours.

    Entries are residuals r = q * s + noise of variance 1, with s = loadings @ w and w ~ N(0, 1); q is 0 where an entry is missing. The
    posterior of w is Gaussian and known in closed form. Neighbours enter in two ways, both linear: their scores pull the
    spot's, and what the factors leave unexplained of a gene in the neighbours is carried over to the spot (kriging of the
    residuals). Residuals are Pearson residuals from the gene's mean rate: under Poisson noise their variance is 1 whatever the
    depth, and the signal grows with its square root.
    """

    name = "linear"

    def __init__(self, n_genes: int, sizes: ExpertSizes):
        super().__init__(n_genes, sizes)
        self.n_factors = sizes.n_factors
        self.register_buffer("loadings", torch.zeros(n_genes, sizes.n_factors))
        # share of a neighbour's scores and unexplained residuals that is carried over; learnt by `fit`
        self.register_buffer("pull", torch.tensor(0.0))
        self.register_buffer("gain", torch.tensor(0.0))

    def initialise(self, likelihood: Likelihood, counts: np.ndarray, known: np.ndarray, library: np.ndarray) -> None:
        """Set the statistics of the genes, and fit the loadings."""
        super().initialise(likelihood, counts, known, library)
        expected = library * self.gene_rate.numpy()
        residuals = (counts - expected) / np.sqrt(np.maximum(expected, 1e-12)) * known
        weights = known * np.sqrt(library / float(self.typical_library))
        self.loadings.copy_(torch.from_numpy(fit_factors(residuals, weights, self.n_factors)))

    @torch.no_grad()
    def fit(self, data: TrainingSpots, likelihood: Likelihood, generator: torch.Generator) -> None:
        """Learn from entries that are hidden in turn how much of the neighbours to carry over, by least squares."""
        gram, moment = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for inputs in data.batches:
            centre, neighbors = inputs.centre, inputs.neighbors
            library = likelihood.visible_library(neighbors)
            neighborhood = self.neighborhood(neighbors, library, inputs.index, inputs.valid)
            hidden = (torch.rand(centre.visible.shape, generator=generator) < _HIDDEN_FOR_NEIGHBORS).to(centre.visible)
            target, weight = self.residuals(centre, likelihood.visible_library(centre))
            target, weight = target * hidden, weight * hidden
            shown = replace(centre, visible=centre.visible * (1.0 - hidden))
            own, pull, carried, _ = self.parts(*self.residuals(shown, likelihood.visible_library(shown)), neighborhood)
            error = target - weight * own
            x = torch.stack([(weight * pull).flatten(), (weight * carried).flatten()]).cpu().double()  # (2, n_entries)
            gram += x @ x.T
            moment += x @ error.flatten().cpu().double()
        common = torch.linalg.solve(gram + 1e-3 * torch.eye(2, dtype=torch.float64), moment).clamp(0.0, 1.0)
        self.pull.fill_(float(common[0]))
        self.gain.fill_(float(common[1]))

    def residuals(self, spots: Spots, library: Tensor) -> tuple[Tensor, Tensor]:
        """Pearson residuals of the visible counts, and their weights q; both (n, n_genes), 0 where hidden."""
        expected = library * self.gene_rate
        residuals = (spots.counts - expected) / expected.sqrt() * spots.visible
        return residuals, spots.visible * (library / self.typical_library).sqrt()

    def posterior(self, residuals: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the scores: mean and variance, (n, n_factors) each.

        From residuals and the strength of their signal (q above), (n, n_genes) each, 0 where missing.
        """
        right = (residuals * weights) @ self.loadings  # (n, n_factors)
        mean, variance = torch.empty_like(right), torch.empty_like(right)
        # where nothing is missing precisions differ by a factor, and one decomposition serves them all
        complete = (weights == weights[:, :1]).all(1)
        # in double precision, which not every device has: loadings that the data do not support are next to nothing, and
        # in single precision the solver fails
        values, vectors = (
            part.to(right) for part in torch.linalg.eigh((self.loadings.T @ self.loadings).cpu().double())
        )
        shrunk = 1.0 / (weights[complete, :1] ** 2 * values + 1.0)
        mean[complete] = ((right[complete] @ vectors) * shrunk) @ vectors.T
        variance[complete] = shrunk @ (vectors**2).T
        others = ~complete
        if others.any():
            factor = torch.linalg.cholesky(self._precision(weights[others]))
            mean[others] = torch.cholesky_solve(right[others, :, None], factor)[:, :, 0]
            variance[others] = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
        return mean, variance

    def _precision(self, weights: Tensor) -> Tensor:
        """Precision of the scores, (n, n_factors, n_factors)."""
        first, second = torch.triu_indices(self.n_factors, self.n_factors, device=weights.device)
        upper = weights**2 @ (self.loadings[:, first] * self.loadings[:, second])  # (n, n_pairs)
        precision = upper.new_zeros(len(upper), self.n_factors, self.n_factors)
        precision[:, first, second] = upper
        precision[:, second, first] = upper
        return precision + torch.eye(self.n_factors, device=upper.device)

    def neighborhood(self, neighbors: Spots, library: Tensor, index: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean score of the neighbours, (batch, n_factors), and mean unexplained residual per gene in units of s, (batch, n_genes)."""
        residuals, weights = self.residuals(neighbors, library)
        score, _ = self.posterior(residuals, weights)
        unexplained = weights * (residuals - weights * (score @ self.loadings.T))
        # one pseudo-neighbour without a residual shrinks the mean over few neighbours
        carried = sum_of_neighbors(unexplained, index, valid) / (sum_of_neighbors(weights**2, index, valid) + 1.0)
        return sum_of_neighbors(score, index, valid) / valid.sum(1, keepdim=True).clamp(min=1.0), carried

    def parts(
        self, residuals: Tensor, weights: Tensor, neighborhood: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the prediction is made of, from residuals and weights of the centres and the output of `neighborhood`.

        Own part, pull of the neighbours' scores, their unexplained residuals, all (batch, n_genes) in units of s, and
        the share of the scores' variance that is known, (batch, 1).
        """
        score, variance = self.posterior(residuals, weights)
        # factors that the data did not support are zero, and known to be; of a hidden spot nothing is known
        used = (self.loadings**2).sum(0)
        seen = (weights > 0).any(1, keepdim=True)
        reliability = seen * (1.0 - (variance @ used)[:, None] / used.sum().clamp(min=1e-6))
        mean_score, carried = neighborhood
        return score @ self.loadings.T, (mean_score - score) @ self.loadings.T, carried, reliability

    def forward(self, centre: Spots, library: Tensor, neighborhood: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Expected rates, (batch, n_genes), and the share of the scores' variance that is known, (batch, 1)."""
        own, pull, carried, reliability = self.parts(*self.residuals(centre, library), neighborhood)
        score = own + self.pull * pull + self.gain * carried
        relative = 1.0 + score / (self.typical_library * self.gene_rate).sqrt()
        return self.gene_rate * relative.clamp(min=_SMALLEST_RATE), reliability


def fit_factors(residuals: np.ndarray, weights: np.ndarray, n_factors: int) -> np.ndarray:
    """Fit residual = weight * (loadings @ score) + noise of variance 1 by expectation-maximisation.

    Scores have a standard normal prior and loadings a normal prior of one scale per factor, learnt with them, which
    prunes factors that the data do not support (Tipping & Bishop 1999, "Probabilistic principal component analysis";
    Bishop 1998, "Bayesian PCA"). Residuals and weights, the strength of the signal in units of the noise, are
    (n_obs, n_genes); entries of weight 0 are missing and do not enter.

    Returns
    -------
    Loadings, float32, (n_genes, n_factors); factors that the data cannot have are 0.
    """
    n_obs, n_genes = residuals.shape
    rank = max(0, min(n_factors, n_obs - 1, n_genes - 1))
    result = np.zeros((n_genes, n_factors), dtype=np.float32)
    if rank == 0 or not weights.any():
        return result
    _, singular, axes = randomized_svd(residuals, rank + 1, n_iter=4, random_state=0)
    strength = np.maximum(singular[:rank] ** 2 - singular[rank] ** 2, 1e-6 * singular[0] ** 2 + 1e-12) / n_obs
    loadings = (axes[:rank].T * np.sqrt(strength / weights.mean())).astype(np.float32)
    squares = weights**2
    pairs = np.triu_indices(rank)
    for _ in range(_N_STEPS):
        score, covariance = _scores(residuals, weights, squares, loadings)
        second = covariance + score[:, :, None] * score[:, None, :]
        gram = _symmetric(squares.T @ second[:, *pairs], pairs, rank)
        moments = (residuals * weights).T @ score
        prior = 1.0 / np.maximum((loadings**2).mean(axis=0), 1e-6)
        loadings = np.linalg.solve(gram + prior[:, None] * np.eye(rank, dtype=np.float32), moments[:, :, None])
        loadings = loadings[:, :, 0].astype(np.float32)
    result[:, :rank] = loadings
    return result


def _scores(
    residuals: np.ndarray, weights: np.ndarray, squares: np.ndarray, loadings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean, (n_obs, rank), and covariance, (n_obs, rank, rank), of the scores."""
    rank = loadings.shape[1]
    pairs = np.triu_indices(rank)
    precision = _symmetric(squares @ (loadings[:, pairs[0]] * loadings[:, pairs[1]]), pairs, rank)
    covariance = np.linalg.inv(precision + np.eye(rank, dtype=np.float32))
    linear = (residuals * weights) @ loadings
    return (covariance @ linear[:, :, None])[:, :, 0], covariance


def _symmetric(upper: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], rank: int) -> np.ndarray:
    """Symmetric matrices from the entries on and above their diagonals, (n, n_pairs) -> (n, rank, rank)."""
    full = np.empty((len(upper), rank, rank), dtype=np.float32)
    full[:, pairs[0], pairs[1]] = upper
    full[:, pairs[1], pairs[0]] = upper
    return full
