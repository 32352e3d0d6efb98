"""Expression as a condition: scores of a profile of rates, of which any genes may be unknown."""

from __future__ import annotations

import torch
from torch import nn

from lgdist_scvi._units import to_log1p

_MOST_SHALLOW = 4.0  # what is left of a rate in a spot of little depth is enlarged this many times, at most
_LEAST_NOISE = 1e-3  # variance of log1p(CP10K) that is left to every gene


class ExpressionScores(nn.Module):
    """Scores on principal axes of log1p(CP10K) of expected rates, given the genes that are known (Tipping & Bishop 1999).

    Parameters
    ----------
    n_genes
        Number of genes.
    n_scores
        Number of axes.
    """

    def __init__(self, n_genes: int, n_scores: int):
        super().__init__()
        self.register_buffer("gene_rate", torch.full((n_genes,), 1.0 / n_genes))
        self.register_buffer("prior", torch.ones(n_genes))
        self.register_buffer("typical_library", torch.ones(()))
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("axes", torch.zeros(n_genes, n_scores))
        self.register_buffer("noise", torch.ones(()))

    @property
    def n_condition(self) -> int:
        """Length of a condition."""
        return 2 * self.axes.shape[1]

    def fit_rates(self, counts: torch.Tensor, library: torch.Tensor) -> None:
        """Learn mean rate and spread of each gene from counts, (n, n_genes), of spots with library sizes (n,)."""
        library = library[:, None].clamp_min(1.0)
        self.typical_library.copy_(library.median())
        mean = (counts.sum(0) / library.sum()).clamp_min(0.1 / float(library.sum()))
        # the variance of a rate beyond that of the counts' sampling, by moments
        variance = ((counts / library - mean) ** 2).mean(0) - mean * (1.0 / library).mean()
        self.gene_rate.copy_(mean)
        self.prior.copy_(mean / variance.clamp_min(0.01 * mean**2))

    def expected(self, counts: torch.Tensor, library: torch.Tensor) -> torch.Tensor:
        """log1p(CP10K) of rates expected at the typical depth of the training, (n, n_genes).

        Under a gamma prior about the genes' means a shallow spot is drawn to them more than a deep one. What is left of its distance from them
        is enlarged to that of a spot of the typical depth, so that the depth is apart.
        """
        library, one = library[:, None].clamp_min(1.0), torch.ones_like(library[:, None])
        mean = to_log1p(self.gene_rate.expand_as(counts), one)
        own = to_log1p((counts + self.prior * self.gene_rate) / (library + self.prior), one)
        typical = self.typical_library
        left = (typical * (library + self.prior)) / (library * (typical + self.prior))
        return (mean + (own - mean) * left.clamp_max(_MOST_SHALLOW)).clamp_min(0.0)

    def fit(self, values: torch.Tensor) -> None:
        """Learn axes from log1p(CP10K) of expected rates, (n, n_genes)."""
        n_scores, n_genes = self.axes.shape[1], len(self.gene_rate)
        centre = values.mean(0)
        _, singular, axes = torch.linalg.svd((values - centre).double(), full_matrices=False)
        variance = singular**2 / max(1, len(values) - 1)
        rank = min(n_scores, len(values) - 1, n_genes)
        noise = (variance[rank:].sum() / max(1, n_genes - rank)).clamp_min(_LEAST_NOISE)
        spread = (variance[:rank] - noise).clamp_min(0).sqrt()
        self.axes.zero_()
        self.axes[:, :rank] = (axes[:rank].T * spread).float()
        self.centre.copy_(centre)
        self.noise.copy_(noise)

    def forward(self, values: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Condition of profiles: posterior means of their scores, and how much of each score's variance is known.

        Parameters
        ----------
        values
            log1p(CP10K) of expected rates, (n, n_genes).
        known
            Genes that are known of all of them, bool, (n_genes,); ``None``: all. Of none the condition is 0 throughout.

        Returns
        -------
        (n, 2 n_scores).
        """
        known = torch.ones(len(self.centre), dtype=torch.bool, device=values.device) if known is None else known
        axes = self.axes * known[:, None]
        deviation = torch.where(known, values - self.centre, 0.0)
        inverse = torch.linalg.inv(axes.T @ axes / self.noise + torch.eye(axes.shape[1], device=values.device))
        mean = deviation @ axes @ inverse / self.noise
        return torch.cat([mean, (1.0 - inverse.diagonal()).clamp_min(0).expand_as(mean)], dim=1)
