"""Deviations of single genes against data that deviate by a known amount."""

from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module._deviations import _VARIANCES, GeneDeviations

N_SPOTS, N_GENES = 3000, 12
TRUE = torch.tensor([0.0, 0.05, 0.5]).repeat(N_GENES // 3)


@pytest.fixture(scope="module")
def data():
    """Expected rates, two counts of rates that deviate from them, and library sizes."""
    torch.manual_seed(0)
    expected = 0.01 + 0.1 * torch.rand(N_SPOTS, N_GENES)
    shape = 1.0 / TRUE.clamp(min=1e-6)
    deviation = torch.where(TRUE > 0, torch._standard_gamma(shape.expand(N_SPOTS, -1).contiguous()) / shape, 1.0)
    library = torch.randint(100, 400, (N_SPOTS, 1)).expand(-1, N_GENES).float()
    first, second = torch.poisson((library * expected * deviation).expand(2, -1, -1))
    return expected, expected * deviation, first, second, library


@pytest.fixture(scope="module")
def deviations(data):
    expected, _, first, second, library = data
    deviations = GeneDeviations(N_GENES)
    deviations.fit(GeneDeviations.evidence(expected, first, library, second, library))
    return deviations


def test_genes_find_how_far_they_deviate(deviations):
    torch.testing.assert_close(deviations.variance, TRUE, rtol=0.25, atol=2e-3)


def test_the_own_count_brings_the_rate_nearer(data, deviations):
    expected, rate, first, _, library = data
    before, after = (
        ((predicted - rate) ** 2).mean(0) for predicted in (expected, deviations(expected, first, library))
    )
    assert (after[TRUE == 0.5] < 0.5 * before[TRUE == 0.5]).all()
    assert (after[TRUE == 0.05] < 0.85 * before[TRUE == 0.05]).all()
    # of a gene that does not deviate, next to nothing of the noise is taken in
    noise = ((first / library - rate) ** 2).mean(0)
    assert (after[TRUE == 0] < 0.002 * noise[TRUE == 0]).all()


def test_the_variance_that_is_left_is_the_squared_error_that_is_left(data, deviations):
    expected, rate, first, _, library = data
    after = deviations(expected, first, library)
    claimed = (after**2 * deviations.relative_variance(first)).mean(0)
    deviates = TRUE > 0
    torch.testing.assert_close(claimed[deviates], ((after - rate) ** 2).mean(0)[deviates], rtol=0.2, atol=0)
    # nothing is looked at of a hidden entry, and all of its variance is left
    assert (deviations.relative_variance(torch.zeros_like(first)) == deviations.variance).all()


def test_the_evidence_is_a_distribution_with_the_mean_that_the_first_count_leads_to_expect():
    variance = torch.tensor(_VARIANCES, dtype=torch.float64)
    rate, first, exposure = torch.tensor([[0.02]]), torch.tensor([[5.0]]), torch.tensor([[100.0]])
    values = torch.stack(
        [
            GeneDeviations.evidence(rate, first, exposure, torch.tensor([[again]]), 2 * exposure)[:, 0]
            - torch.lgamma(torch.tensor(again + 1.0, dtype=torch.float64))
            for again in map(float, range(400))
        ]
    )
    torch.testing.assert_close(values.exp().sum(0), torch.ones_like(variance), rtol=0, atol=0.02)
    mean = (values.exp() * torch.arange(400.0).double()[:, None]).sum(0)
    torch.testing.assert_close(mean[:8], (4.0 * (1 + 5 * variance) / (1 + 2 * variance))[:8], rtol=1e-3, atol=1e-3)


def test_hidden_counts_change_nothing(data, deviations):
    expected, _, first, *_ = data
    nothing = torch.zeros_like(first)
    torch.testing.assert_close(deviations(expected, nothing, nothing), expected, rtol=0, atol=0)
