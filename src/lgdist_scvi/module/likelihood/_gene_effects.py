"""Gene effects: Gamma-Poisson update of a predicted rate by the spot's own count of that gene."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# variances of the gene effect that genes choose among
_VARIANCES = (0.0, *torch.logspace(-3.5, 1.5, 17).tolist())
_STEPS = 100


class GeneEffects(nn.Module):
    """Effects of single genes in single spots, which neither other genes nor neighbours share; none before :meth:`fit`.

    A count is Poisson with mean L * r * e: r is the expected share of the library, and e, the gene effect, is gamma
    distributed around 1 with a variance per gene. Gamma and Poisson are conjugate: a count x moves the expected rate
    from r to r * (1 + variance * x) / (1 + variance * L * r), and a second count is negative binomial. As r is found
    from all counts of a spot, x among them, variances are those that predict second counts best, given that.
    """

    def __init__(self, n_genes: int):
        super().__init__()
        self.register_buffer("variance", torch.zeros(n_genes))

    def forward(self, rate: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
        """Expected rate given a count, (..., batch, n_genes), from the one expected without it, a share of the library.

        `counts` and `exposure` are the count and its library size, in counts, (batch, n_genes); both 0 where it is
        hidden.
        """
        return _updated(rate, counts, exposure, self.variance)

    def relative_variance(self, counts: Tensor) -> Tensor:
        """Variance that is left of a rate given a count, relative to its squared expectation, (batch, n_genes)."""
        return self.variance / (1.0 + self.variance * counts)

    @staticmethod
    def evidence(
        rate: Tensor,
        counts: Tensor,
        exposure: Tensor,
        again: Tensor,
        exposure_again: Tensor,
    ) -> Tensor:
        """Log-likelihood, in nats, of second counts under each variance that genes choose among, (n_variances, n_genes), float64.

        The first arguments are those of :meth:`forward`; `again` and `exposure_again` are second counts of the same
        rates, and their library size, in counts, (batch, n_genes); both 0 where there is none.
        """
        # small differences of large numbers; not every device has double precision
        given = (rate, counts, exposure, again, exposure_again)
        rate, counts, exposure, again, exposure_again = (part.cpu().double() for part in given)
        return torch.stack(  # one row for each variance
            [
                _log_likelihood(
                    again, exposure_again * _updated(rate, counts, exposure, variance) + 1e-8, counts, variance
                ).sum(0)
                for variance in _VARIANCES
            ]
        )

    @torch.no_grad()
    def fit(self, evidence: Tensor) -> None:
        """Learn the variances by empirical Bayes, from the sum of :meth:`evidence` over batches.

        Genes share a prior over them, learnt from all genes.
        """
        prior = evidence.new_full((len(_VARIANCES), 1), 1.0 / len(_VARIANCES))
        for _ in range(_STEPS):
            posterior = torch.softmax(evidence + prior.log(), dim=0)
            prior = posterior.mean(1, keepdim=True).clamp(min=1e-12)
        self.variance.copy_(posterior.new_tensor(_VARIANCES) @ posterior)


def _updated(rate: Tensor, counts: Tensor, exposure: Tensor, variance: Tensor | float) -> Tensor:
    return rate * (1.0 + variance * counts) / (1.0 + variance * exposure * rate)


def _log_likelihood(again: Tensor, expected: Tensor, counts: Tensor, variance: float) -> Tensor:
    """Of second counts with given expectation, after a first one, entrywise and up to a constant of the counts."""
    if variance == 0.0:
        return torch.xlogy(again, expected) - expected
    shape = 1.0 / variance + counts
    return (
        torch.lgamma(shape + again)
        - torch.lgamma(shape)
        - shape * torch.log1p(expected / shape)
        - again * torch.log(shape / expected + 1.0)
    )
