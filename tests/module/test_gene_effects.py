"""Gene effects against data whose genes have effects of a known variance."""

from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module.likelihood import GeneEffects
from lgdist_scvi.module.likelihood._gene_effects import _VARIANCES

N_SPOTS, N_GENES = 3000, 12
TRUE = torch.tensor([0.0, 0.05, 0.5]).repeat(N_GENES // 3)


@pytest.fixture(scope="module")
def data():
    """Expected rates, two counts of rates that differ from them by gene effects, and library sizes."""
    torch.manual_seed(0)
    expected = 0.01 + 0.1 * torch.rand(N_SPOTS, N_GENES)
    shape = 1.0 / TRUE.clamp(min=1e-6)
    effect = torch.where(TRUE > 0, torch._standard_gamma(shape.expand(N_SPOTS, -1).contiguous()) / shape, 1.0)
    library = torch.randint(100, 400, (N_SPOTS, 1)).expand(-1, N_GENES).float()
    first, second = torch.poisson((library * expected * effect).expand(2, -1, -1))
    return expected, expected * effect, first, second, library


@pytest.fixture(scope="module")
def effects(data):
    expected, _, first, second, library = data
    effects = GeneEffects(N_GENES)
    effects.fit(GeneEffects.evidence(expected, first, library, second, library))
    return effects


def test_genes_find_the_variance_of_their_effects(effects):
    torch.testing.assert_close(effects.variance, TRUE, rtol=0.25, atol=2e-3)


def test_the_own_count_brings_the_rate_nearer(data, effects):
    expected, rate, first, _, library = data
    before, after = (((predicted - rate) ** 2).mean(0) for predicted in (expected, effects(expected, first, library)))
    assert (after[TRUE == 0.5] < 0.5 * before[TRUE == 0.5]).all()
    assert (after[TRUE == 0.05] < 0.85 * before[TRUE == 0.05]).all()
    # of a gene without effects, next to nothing of the noise is taken in
    noise = ((first / library - rate) ** 2).mean(0)
    assert (after[TRUE == 0] < 0.002 * noise[TRUE == 0]).all()


def test_the_variance_that_is_left_is_the_squared_error_that_is_left(data, effects):
    expected, rate, first, _, library = data
    after = effects(expected, first, library)
    claimed = (after**2 * effects.relative_variance(first)).mean(0)
    has_effects = TRUE > 0
    torch.testing.assert_close(claimed[has_effects], ((after - rate) ** 2).mean(0)[has_effects], rtol=0.2, atol=0)
    # nothing is looked at of a hidden entry, and all of its variance is left
    assert (effects.relative_variance(torch.zeros_like(first)) == effects.variance).all()


def test_the_evidence_is_a_distribution_with_the_mean_expected_after_the_first_count():
    variance = torch.tensor(_VARIANCES, dtype=torch.float64)
    rate, first, exposure = torch.tensor([[0.02]]), torch.tensor([[5.0]]), torch.tensor([[100.0]])
    values = torch.stack(
        [
            GeneEffects.evidence(rate, first, exposure, torch.tensor([[again]]), 2 * exposure)[:, 0]
            - torch.lgamma(torch.tensor(again + 1.0, dtype=torch.float64))
            for again in map(float, range(400))
        ]
    )
    torch.testing.assert_close(values.exp().sum(0), torch.ones_like(variance), rtol=0, atol=0.02)
    mean = (values.exp() * torch.arange(400.0).double()[:, None]).sum(0)
    torch.testing.assert_close(mean[:8], (4.0 * (1 + 5 * variance) / (1 + 2 * variance))[:8], rtol=1e-3, atol=1e-3)


def test_hidden_counts_change_nothing(data, effects):
    expected, _, first, *_ = data
    nothing = torch.zeros_like(first)
    torch.testing.assert_close(effects(expected, nothing, nothing), expected, rtol=0, atol=0)
