"""The mixture expert against data that profiles made."""

from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module._profiles import ProfileMixture

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


def fitted(data, known=None):
    counts, rates, library = data
    mixture = ProfileMixture(rates.mean(0), N_PROFILES)
    known = torch.ones_like(counts) if known is None else known
    mixture.fit(counts, known, library, rates.mean(0), torch.Generator().manual_seed(1))
    return mixture


def error(prediction, rates):
    """Mean squared error over that of the gene means."""
    return float(
        ((prediction - rates) ** 2 / rates.mean(0)).sum() / ((rates.mean(0) - rates) ** 2 / rates.mean(0)).sum()
    )


def test_rates_are_found_and_neighbours_help(data):
    counts, rates, library = data
    mixture, visible = fitted(data), torch.ones_like(counts)
    alone = error(mixture(counts, visible, library, mixture.typical_usage), rates)
    assert alone < 0.4
    adjacency = torch.zeros(N_SPOTS, N_SPOTS)
    index = torch.arange(N_SPOTS - 1)
    adjacency[index, index + 1] = adjacency[index + 1, index] = 1.0
    around = mixture.around(counts, visible, library, adjacency)
    assert error(mixture(counts, visible, library, around), rates) < 0.98 * alone
    # of a hidden spot the neighbours tell all there is
    nothing = torch.zeros_like(counts)
    hidden = mixture(counts, nothing, library, around)
    torch.testing.assert_close(hidden, around @ mixture.profiles)
    assert error(hidden, rates) < 0.3


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
    around = mixture.around(counts, torch.ones_like(counts), library, torch.zeros(2, N_SPOTS))
    torch.testing.assert_close(around, mixture.typical_usage.expand(2, -1))
    typical = mixture(counts[:2], torch.zeros(2, N_GENES), library[:2], around)
    torch.testing.assert_close(typical[0], rates.mean(0), atol=0.01, rtol=0.1)
