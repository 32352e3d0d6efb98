"""The expert of expression profiles against data that profiles made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lgdist_scvi.module import Spots
from lgdist_scvi.module.experts import GammaPoisson, GammaPoissonExpert, TrainingSpots
from lgdist_scvi.module.likelihood import PoissonLikelihood

N_SPOTS, N_GENES, N_PROFILES = 300, 40, 6


@pytest.fixture(scope="module")
def data():
    """Counts of spots that mix three profiles, neighbours alike: counts, true rates, library."""
    generator = torch.Generator().manual_seed(0)
    profiles = torch.distributions.Dirichlet(torch.full((3, N_GENES), 0.3))
    torch.manual_seed(0)
    profiles = profiles.sample()
    place = torch.linspace(0, 1, N_SPOTS)[:, None]
    loading = torch.cat([(1 - place) ** 2, 2 * place * (1 - place), place**2], dim=1)
    rates = loading @ profiles
    library = torch.full((N_SPOTS, 1), 30.0)
    return torch.poisson(library * rates, generator=generator), rates, library


def chain(connected=True):
    """Rows of the spots to the left and right, and which of them there are."""
    index = torch.arange(N_SPOTS)[:, None] + torch.tensor([-1, 1])
    there = (index >= 0) & (index < N_SPOTS) & connected
    return index.clamp(0, N_SPOTS - 1), there.float()


def fitted(data, known=None, connected=True):
    counts, rates, library = data
    factorisation = GammaPoisson(N_GENES, N_PROFILES)
    known = torch.ones_like(counts) if known is None else known
    factorisation.fit(counts, known, library, *chain(connected), rates.mean(0), torch.Generator().manual_seed(1))
    return factorisation


def from_neighbors(factorisation, counts, visible, library, index, valid):
    """Prior mean of the loadings given the neighbours."""
    return factorisation.prior_mean(
        factorisation.loading(counts, visible, library, factorisation.typical_loading), index, valid
    )


def predicted(factorisation, counts, visible, library, prior):
    return factorisation.loading(counts, visible, library, prior) @ factorisation.profiles


def error(prediction, rates):
    """Mean squared error over that of the gene means."""
    return float(
        ((prediction - rates) ** 2 / rates.mean(0)).sum() / ((rates.mean(0) - rates) ** 2 / rates.mean(0)).sum()
    )


def test_rates_are_found_and_neighbours_help(data):
    counts, rates, library = data
    visible = torch.ones_like(counts)
    isolated = fitted(data, connected=False)
    alone = error(predicted(isolated, counts, visible, library, isolated.typical_loading), rates)
    assert alone < 0.4
    factorisation = fitted(data)
    prior = from_neighbors(factorisation, counts, visible, library, *chain())
    assert error(predicted(factorisation, counts, visible, library, prior), rates) < 0.98 * alone
    # of a hidden spot the neighbours tell all there is
    nothing = torch.zeros_like(counts)
    hidden = predicted(factorisation, counts, nothing, library, prior)
    torch.testing.assert_close(hidden, prior @ factorisation.profiles)
    assert error(hidden, rates) < 0.3


def test_loadings_solve_their_equations(data):
    """The steps that overshoot end where those of expectation-maximisation end."""
    counts, _, library = data
    factorisation, visible = fitted(data), torch.ones_like(counts)
    profiles, geometric_profiles = factorisation.profiles, factorisation.geometric
    expected = factorisation.typical_loading
    rate = 1.0 / expected + library * (visible @ profiles.T)

    def after(n_steps):
        loading = geometric = expected.expand(N_SPOTS, -1)
        for _ in range(n_steps):
            shape = 1.0 + geometric * ((counts / (geometric @ geometric_profiles)) @ geometric_profiles.T)
            loading, geometric = shape / rate, torch.exp(torch.digamma(shape)) / rate
        return loading @ profiles

    found, settled = predicted(factorisation, counts, visible, library, expected), after(2000)
    assert error(found, settled) < 1e-4
    assert error(found, settled) < 0.7 * error(after(5), settled)


def test_hidden_counts_are_not_looked_at(data):
    counts, rates, library = data
    visible = (torch.rand(counts.shape, generator=torch.Generator().manual_seed(2)) > 0.3).float()
    other = torch.where(visible > 0, counts, 1000.0)
    first, second = fitted(data, visible), fitted((other, rates, library), visible)
    torch.testing.assert_close(first.profiles, second.profiles)
    torch.testing.assert_close(
        predicted(first, counts, visible, library, first.typical_loading),
        predicted(first, other, visible, library, first.typical_loading),
    )
    assert error(predicted(first, counts, visible, library, first.typical_loading), rates) < 0.6


def test_no_neighbour_and_nothing_visible_is_the_typical_spot(data):
    counts, rates, library = data
    factorisation = fitted(data)
    nobody = torch.zeros(2, 3)
    prior = from_neighbors(factorisation, counts, torch.ones_like(counts), library, nobody.long(), nobody)
    torch.testing.assert_close(prior, factorisation.typical_loading.expand(2, -1))
    typical = predicted(factorisation, counts[:2], torch.zeros(2, N_GENES), library[:2], prior)
    torch.testing.assert_close(typical[0], rates.mean(0), atol=0.01, rtol=0.1)


def test_average_of_factorisations_is_better_than_they_are(data):
    counts, rates, library = data
    visible = torch.ones_like(counts)
    likelihood = PoissonLikelihood(N_GENES, n_latent=2, compositional=True)
    likelihood.set_statistics(rates.mean(0), torch.ones(N_GENES), torch.ones(N_GENES), 30.0)
    expert = GammaPoissonExpert(N_GENES, SimpleNamespace(n_factors=1, n_profiles=N_PROFILES, n_mixtures=4))
    expert.initialise(likelihood, counts.numpy(), visible.numpy(), library.numpy())
    spots = Spots(counts, visible, library)
    expert.fit(TrainingSpots(spots, *chain(), batches=[]), likelihood, torch.Generator().manual_seed(1))
    priors = expert.neighborhood(spots, library, *chain())
    each = [
        error(predicted(one, counts, visible, library, prior), rates)
        for one, prior in zip(expert.factorisations, priors, strict=True)
    ]
    assert len(set(each)) == 4
    together, _ = expert(spots, library, priors)
    assert error(together, rates) < 0.98 * sum(each) / 4


def test_few_patterns_of_visible_entries_are_fitted_as_any(data):
    """Products with few distinct rows are made once for each; rows that differ by next to nothing are many."""
    generator = torch.Generator().manual_seed(3)
    patterns = (torch.rand(10, N_GENES, generator=generator) > 0.3).float()
    visible = patterns[torch.randperm(N_SPOTS, generator=generator) % len(patterns)]
    different = visible * (1.0 + 1e-6 * torch.rand(visible.shape, generator=generator))
    assert len(visible.unique(dim=0)) == 10 and len(different.unique(dim=0)) == N_SPOTS
    few, many = fitted(data, visible), fitted(data, different)
    torch.testing.assert_close(few.profiles, many.profiles, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(few.typical_loading, many.typical_loading, rtol=1e-3, atol=1e-5)
