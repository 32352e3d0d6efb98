"""The linear expert: factor analysis of a spot's own entries, and what its neighbours add to it."""

from __future__ import annotations

import torch
from torch import nn

from lgdist_scvi.module._neighborhood import sum_of_neighbors


class SpatialFactors(nn.Module):
    """Factor analysis with exact inference for any pattern of missing entries, corrected by the neighbours.

    Entries are residuals r = q * s + noise of variance 1, with s = loadings @ w and w ~ N(0, 1); q is 0 where an entry is missing. The
    posterior of w is Gaussian and known in closed form. Neighbours enter in two ways, both linear: their scores pull the
    spot's, and what the factors leave unexplained of a gene in the neighbours is carried over to the spot (kriging of the
    residuals).

    Parameters
    ----------
    loadings
        (n_genes, n_factors)
    """

    def __init__(self, loadings: torch.Tensor):
        super().__init__()
        self.n_factors = loadings.shape[1]
        self.register_buffer("loadings", loadings)
        # how much of a neighbour's deviation is carried over; learnt by `fit_neighbors`
        self.register_buffer("pull", torch.tensor(0.0))
        self.register_buffer("gain", torch.tensor(0.0))

    def posterior(self, residuals: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior of the scores.

        Parameters
        ----------
        residuals
            (n, n_genes), 0 where missing.
        weights
            Strength of the signal, q above, (n, n_genes), 0 where missing.

        Returns
        -------
        Mean and variance, (n, n_factors) each.
        """
        right = (residuals * weights) @ self.loadings
        mean, variance = torch.empty_like(right), torch.empty_like(right)
        # where nothing is missing precisions differ by a factor, and one decomposition serves them all
        complete = (weights == weights[:, :1]).all(1)
        # in double precision, which not every device has: loadings that the data do not support are next to nothing, and
        # in single precision the solver stumbles over them
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

    def _precision(self, weights: torch.Tensor) -> torch.Tensor:
        """Precision of the scores, (n, n_factors, n_factors)."""
        first, second = torch.triu_indices(self.n_factors, self.n_factors, device=weights.device)
        upper = weights**2 @ (self.loadings[:, first] * self.loadings[:, second])
        precision = upper.new_zeros(len(upper), self.n_factors, self.n_factors)
        precision[:, first, second] = upper
        precision[:, second, first] = upper
        return precision + torch.eye(self.n_factors, device=upper.device)

    def around(
        self, residuals: torch.Tensor, weights: torch.Tensor, index: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What neighbours tell: their mean score and what it leaves unexplained.

        Parameters
        ----------
        residuals, weights
            Of every spot that is a neighbour of some centre, (n, n_genes).
        index, valid
            Rows of a centre's neighbours among these, and 1 where there is one, (batch, k).

        Returns
        -------
        Mean score, (batch, n_factors), and mean unexplained residual per gene in units of s, (batch, n_genes); 0 without
        neighbours.
        """
        score, _ = self.posterior(residuals, weights)
        unexplained = weights * (residuals - weights * (score @ self.loadings.T))
        # one pseudo-neighbour without a deviation keeps small what few neighbours say
        carried = sum_of_neighbors(unexplained, index, valid) / (sum_of_neighbors(weights**2, index, valid) + 1.0)
        return sum_of_neighbors(score, index, valid) / valid.sum(1, keepdim=True).clamp(min=1.0), carried

    def parts(
        self, residuals: torch.Tensor, weights: torch.Tensor, around: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the prediction is made of.

        Parameters
        ----------
        residuals, weights
            Of the centres, (batch, n_genes).
        around
            Output of :meth:`around`.

        Returns
        -------
        Own part, pull of the neighbours' scores, their unexplained residuals, all (batch, n_genes) in units of s, and the
        share of the scores' variance that is known, (batch, 1).
        """
        score, variance = self.posterior(residuals, weights)
        # factors that the data did not support are known to be nothing, but of a hidden spot nothing is known
        used = (self.loadings**2).sum(0)
        seen = (weights > 0).any(1, keepdim=True)
        reliability = seen * (1.0 - (variance @ used)[:, None] / used.sum().clamp(min=1e-6))
        around_score, carried = around
        return score @ self.loadings.T, (around_score - score) @ self.loadings.T, carried, reliability

    def forward(
        self, residuals: torch.Tensor, weights: torch.Tensor, around: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Expected s, (batch, n_genes), and the reliability of the own part; arguments as in :meth:`parts`."""
        own, pull, carried, reliability = self.parts(residuals, weights, around)
        return own + self.pull * pull + self.gain * carried, reliability

    @torch.no_grad()
    def fit_neighbors(self, parts: list[tuple[torch.Tensor, ...]]) -> None:
        """Learn by least squares how much of the neighbours to carry over.

        Parameters
        ----------
        parts
            Of each batch: target residuals, their weights (0 where not scored), and the three parts of
            :meth:`parts` made without them, all (batch, n_genes).
        """
        gram, moment = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for target, weight, own, pull, carried in parts:
            error = target - weight * own
            x = torch.stack([(weight * pull).flatten(), (weight * carried).flatten()]).cpu().double()
            gram += x @ x.T
            moment += x @ error.flatten().cpu().double()
        common = torch.linalg.solve(gram + 1e-3 * torch.eye(2, dtype=torch.float64), moment).clamp(0.0, 1.0)
        self.pull.fill_(float(common[0]))
        self.gain.fill_(float(common[1]))
