"""The mixture expert against data that profiles made."""

from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module._profiles import AveragedMixtures, ProfileMixture

N_SPOTS, N_GENES, N_PROFILES = 300, 40, 6


@pytest.fixture(scope="module")
def data():
    """Counts of spots that mix three profiles, neighbours alike: counts, true rates, library."""
    generator = torch.Generator().manual_seed(0)
    profiles = torch.distributions.Dirichlet(torch.full((3, N_GENES), 0.3))
    torch.manual_seed(0)
    profiles = profiles.sample()
    place = torch.linspace(0, 1, N_SPOTS)[:, None]
    usage = torch.cat([(1 - place) ** 2, 2 * place * (1 - place), place**2], dim=1)
    rates = usage @ profiles
    library = torch.full((N_SPOTS, 1), 30.0)
    return torch.poisson(library * rates, generator=generator), rates, library


def chain(connected=True):
    """Rows of the spots to the left and right, and which of them there are."""
    index = torch.arange(N_SPOTS)[:, None] + torch.tensor([-1, 1])
    there = (index >= 0) & (index < N_SPOTS) & connected
    return index.clamp(0, N_SPOTS - 1), there.float()


def fitted(data, known=None, connected=True):
    counts, rates, library = data
    mixture = ProfileMixture(rates.mean(0), N_PROFILES)
    known = torch.ones_like(counts) if known is None else known
    mixture.fit(counts, known, library, *chain(connected), rates.mean(0), torch.Generator().manual_seed(1))
    return mixture


def error(prediction, rates):
    """Mean squared error over that of the gene means."""
    return float(
        ((prediction - rates) ** 2 / rates.mean(0)).sum() / ((rates.mean(0) - rates) ** 2 / rates.mean(0)).sum()
    )


def test_rates_are_found_and_neighbours_help(data):
    counts, rates, library = data
    visible = torch.ones_like(counts)
    isolated = fitted(data, connected=False)
    alone = error(isolated(counts, visible, library, isolated.typical_usage), rates)
    assert alone < 0.4
    mixture = fitted(data)
    around = mixture.around(counts, visible, library, *chain())
    assert error(mixture(counts, visible, library, around), rates) < 0.98 * alone
    # of a hidden spot the neighbours tell all there is
    nothing = torch.zeros_like(counts)
    hidden = mixture(counts, nothing, library, around)
    torch.testing.assert_close(hidden, around @ mixture.profiles)
    assert error(hidden, rates) < 0.3


def test_usages_solve_their_equations(data):
    """The steps that overshoot end where those end that do not."""
    counts, _, library = data
    mixture, visible = fitted(data), torch.ones_like(counts)
    expected = mixture.typical_usage
    rate = mixture._usage_rate(visible, library, expected)
    usage = geometric = expected.expand(N_SPOTS, -1)
    for _ in range(2000):
        usage, geometric = mixture._usage_step(counts, rate, geometric)
    found = mixture.usage(counts, visible, library, expected) @ mixture.profiles
    few = expected.expand(N_SPOTS, -1)
    for _ in range(5):
        plain, few = mixture._usage_step(counts, rate, few)
    settled = usage @ mixture.profiles
    assert error(found, settled) < 1e-4
    assert error(found, settled) < 0.7 * error(plain @ mixture.profiles, settled)


def test_hidden_counts_are_not_looked_at(data):
    counts, rates, library = data
    visible = (torch.rand(counts.shape, generator=torch.Generator().manual_seed(2)) > 0.3).float()
    other = torch.where(visible > 0, counts, 1000.0)
    first, second = fitted(data, visible), fitted((other, rates, library), visible)
    torch.testing.assert_close(first.profiles, second.profiles)
    torch.testing.assert_close(
        first(counts, visible, library, first.typical_usage), first(other, visible, library, first.typical_usage)
    )
    assert error(first(counts, visible, library, first.typical_usage), rates) < 0.6


def test_no_neighbour_and_nothing_visible_is_the_typical_spot(data):
    counts, rates, library = data
    mixture = fitted(data)
    nobody = torch.zeros(2, 3)
    around = mixture.around(counts, torch.ones_like(counts), library, nobody.long(), nobody)
    torch.testing.assert_close(around, mixture.typical_usage.expand(2, -1))
    typical = mixture(counts[:2], torch.zeros(2, N_GENES), library[:2], around)
    torch.testing.assert_close(typical[0], rates.mean(0), atol=0.01, rtol=0.1)


def test_average_of_mixtures_is_better_than_they_are(data):
    counts, rates, library = data
    visible = torch.ones_like(counts)
    mixtures = AveragedMixtures(rates.mean(0), N_PROFILES, 4)
    mixtures.fit(counts, visible, library, *chain(), rates.mean(0), generator=torch.Generator().manual_seed(1))
    around = mixtures.around(counts, visible, library, *chain())
    each = [
        error(mixture(counts, visible, library, part), rates) for mixture, part in zip(mixtures, around, strict=True)
    ]
    assert len(set(each)) == 4
    together = mixtures(counts, visible, library, around)
    assert error(together, rates) < 0.98 * sum(each) / 4
