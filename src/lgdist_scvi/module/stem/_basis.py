"""The latent of Stem: principal axes of the logarithms of expected rates."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import nn

_SMALLEST_RATE = 0.02  # of a target, as a part of the gene's mean rate
_SMALLEST_SCALE = 0.01  # of the score of a gene whose target hardly varies


class LogRates(nn.Module):
    """Scores of genes, logarithms of rates over mean rates, as a linear function of a latent of unit variance.

    Axes are those of the scores weighted by the square root of the genes' mean rates, as the deviance of counts weights them.
    """

    def __init__(self, n_genes: int, n_latent: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("axes", torch.zeros(n_genes, n_latent))
        self.register_buffer("weights", torch.zeros(n_genes, n_latent))

    def fit(self, rate: np.ndarray, gene_rate: np.ndarray) -> None:
        """Learn from expected rates of training spots, (n, n_genes), and the mean rate of each gene, (n_genes,)."""
        score = _score(rate, gene_rate)
        centre, weight = _centre(rate, gene_rate), np.sqrt(gene_rate)
        n_latent = self.axes.shape[1]
        rank = min(n_latent, *score.shape)
        _, singular, axes = randomized_svd((score - centre) * weight, rank, n_iter=4, random_state=0)
        std = np.maximum(singular / np.sqrt(len(score)), 1e-9)
        for buffer, value in (
            (self.axes, (axes * std[:, None] / weight).T),
            (self.weights, (axes / std[:, None] * weight).T),
        ):
            buffer.zero_()
            buffer[:, :rank] = torch.from_numpy(value.astype(np.float32))
        self.centre.copy_(torch.from_numpy(centre.astype(np.float32)))

    def latent_of(self, rate: np.ndarray, gene_rate: np.ndarray) -> np.ndarray:
        """Latents of rates, float32, (..., n_genes) -> (..., n_latent)."""
        score = _score(rate, gene_rate) - self.centre.cpu().numpy()
        return (score @ self.weights.cpu().numpy()).astype(np.float32)

    def latent_change(self, score: torch.Tensor) -> torch.Tensor:
        """Change of the latent that changes scores like this, (..., n_genes) -> (..., n_latent)."""
        return score @ self.weights

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Scores, (..., n_latent) -> (..., n_genes)."""
        return self.centre + latent @ self.axes.T


class GeneLogRates(nn.Module):
    """As :class:`LogRates`, with the standardised score of each gene for a latent."""

    def __init__(self, n_genes: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))

    def fit(self, rate: np.ndarray, gene_rate: np.ndarray) -> None:
        """Learn from expected rates of training spots, (n, n_genes), and the mean rate of each gene, (n_genes,)."""
        score, centre = _score(rate, gene_rate), _centre(rate, gene_rate)
        scale = np.sqrt(((score - centre) ** 2).mean(axis=0)).clip(min=_SMALLEST_SCALE)
        for buffer, value in ((self.centre, centre), (self.scale, scale)):
            buffer.copy_(torch.from_numpy(value.astype(np.float32)))

    def latent_of(self, rate: np.ndarray, gene_rate: np.ndarray) -> np.ndarray:
        """Latents of rates, float32, (..., n_genes)."""
        score = _score(rate, gene_rate) - self.centre.cpu().numpy()
        return (score / self.scale.cpu().numpy()).astype(np.float32)

    def latent_change(self, score: torch.Tensor) -> torch.Tensor:
        """Change of the latent that changes scores like this, (..., n_genes)."""
        return score / self.scale

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Scores, (..., n_genes)."""
        return self.centre + latent * self.scale


def _centre(rate: np.ndarray, gene_rate: np.ndarray) -> np.ndarray:
    """Score of the mean rates, for which a latent of 0 stands, (n_genes,)."""
    return np.log(np.maximum(rate.mean(axis=0) / gene_rate, _SMALLEST_RATE))


def _score(rate: np.ndarray, gene_rate: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(rate / gene_rate, _SMALLEST_RATE))
