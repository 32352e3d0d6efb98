"""The expert of captured values against counts that profiles made, of which zeros and some others are not seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lgdist_scvi.module import Spots
from lgdist_scvi.module.experts import CapturedGammaPoisson, CapturedGammaPoissonExpert, TrainingSpots
from lgdist_scvi.module.likelihood import CapturedLikelihood, any_poisson, expected_captured

N_SPOTS, N_GENES, N_PROFILES = 400, 40, 6
MISSING = 0.3  # of the positive counts of the first half of the genes


@pytest.fixture(scope="module")
def data():
    """Counts, which of them are seen, rates, and library of spots in a row that mix three profiles."""
    torch.manual_seed(0)
    profiles = torch.distributions.Dirichlet(torch.full((3, N_GENES), 0.5)).sample()
    place = torch.linspace(0, 1, N_SPOTS)[:, None]
    rates = torch.cat([(1 - place) ** 2, 2 * place * (1 - place), place**2], dim=1) @ profiles
    library = torch.full((N_SPOTS, 1), 200.0)
    counts = torch.poisson(library * rates)
    seen = counts > 0
    seen[:, : N_GENES // 2] &= torch.rand(N_SPOTS, N_GENES // 2) > MISSING
    return counts, seen.float(), rates, library


@pytest.fixture(scope="module")
def fitted(data):
    counts, seen, rates, library = data
    return expert_of(counts, seen, library, rates.mean(0), N_PROFILES, 2)


def expert_of(counts, seen, library, gene_rate, n_profiles, n_mixtures):
    likelihood = CapturedLikelihood(N_GENES, n_latent=2, compositional=True)
    likelihood.set_statistics(gene_rate, torch.ones(N_GENES), torch.ones(N_GENES), 200.0)
    sizes = SimpleNamespace(n_factors=1, n_profiles=n_profiles, n_mixtures=n_mixtures)
    expert = CapturedGammaPoissonExpert(N_GENES, sizes)
    expert.initialise(likelihood, counts.numpy(), seen.numpy(), library.numpy())
    data = TrainingSpots(Spots(counts, seen, library), *row(), batches=[])
    expert.fit(data, likelihood, torch.Generator().manual_seed(1))
    return expert


def row():
    """Rows of the spots to the left and right, and which of them there are."""
    index = torch.arange(N_SPOTS)[:, None] + torch.tensor([-1, 1])
    there = (index >= 0) & (index < N_SPOTS)
    return index.clamp(0, N_SPOTS - 1), there.float()


def test_zeros_are_told_from_missing_counts(data, fitted):
    """As many counts are found to be missing as are, and rates come out as if the zeros were known."""
    counts, seen, rates, library = data
    missing = fitted.factorisations[0].missing
    assert missing[: N_GENES // 2].mean() == pytest.approx(MISSING, abs=0.05)
    assert missing[N_GENES // 2 :].mean() < 0.05
    priors, *_ = fitted.neighborhood(Spots(counts, seen, library), library, *row())
    found = torch.stack(
        [
            one.loading(counts, seen, library, prior) @ one.profiles
            for one, prior in zip(fitted.factorisations, priors, strict=True)
        ]
    ).mean(0)
    assert (found.mean(0) / rates.mean(0) - 1).abs().mean() < 0.1
    # the mean of what is seen alone is far from that
    of_seen = (counts * seen).sum(0) / (library * seen).sum(0)
    assert (of_seen / rates.mean(0) - 1).abs().mean() > 0.2


def test_captured_values_that_are_missing_are_predicted(data, fitted):
    counts, seen, rates, library = data
    hidden = (counts > 0) & (seen == 0)
    values = torch.log1p(counts / library * 1e4)
    spots = Spots(counts, seen, library)
    predicted, _ = fitted(spots, library, fitted.neighborhood(spots, library, *row()))
    mean = (values * seen).sum(0) / seen.sum(0)
    known = expected_captured(any_poisson, library * rates, library)
    floor, error, of_means = (((what - values)[hidden] ** 2).mean() for what in (known, predicted, mean))
    assert error - floor < 0.5 * (of_means - floor)
    assert abs(float((predicted - values)[hidden].mean())) < 0.05


def test_weight_of_an_unseen_entry_is_its_probability_of_being_a_zero(data):
    *_, rates, _ = data
    factorisation = CapturedGammaPoisson(N_GENES, N_PROFILES)
    factorisation.profiles.copy_(rates.mean(0).expand(N_PROFILES, -1))
    factorisation.missing.fill_(0.2)
    visible = torch.zeros(2, N_GENES)
    visible[0, 0] = 1.0
    library, loading = torch.tensor([[100.0], [100.0]]), factorisation.typical_loading.expand(2, -1)
    known = factorisation.known(visible, library, loading)
    zero = 0.8 * torch.exp(-100.0 * rates.mean(0))
    torch.testing.assert_close(known[0, 1:], (zero / (zero + 0.2))[1:])
    assert known[0, 0] == 1.0
    assert not known[1].any()  # a spot that is hidden whole tells nothing about zeros


def test_what_is_unexplained_in_the_neighbours_is_carried_over(data):
    """One gene is high in one half of the slide, where no profile can follow it."""
    *_, rates, library = data
    torch.manual_seed(2)
    factor = torch.ones_like(rates)
    factor[: N_SPOTS // 2, 3] = 4.0
    changed = torch.poisson(library * rates.mean(0) * factor)
    seen = (changed > 0).float()
    expert = expert_of(changed, seen, library, rates.mean(0), 1, 1)
    assert expert.shared.variance[3] == expert.shared.variance.max()
    spots = Spots(changed, seen, library)
    neighborhood = expert.neighborhood(spots, library, *row())
    carried, _ = expert(spots, library, neighborhood)
    expert.shared.variance.zero_()
    alone, _ = expert(spots, library, neighborhood)
    moved = (carried - alone)[:, 3]
    assert moved[: N_SPOTS // 2].mean() > 0.05 > -0.05 > moved[N_SPOTS // 2 :].mean()


def test_reliability_is_the_share_of_own_counts(data, fitted):
    counts, seen, _, library = data
    seen = seen.clone()
    seen[0] = 0.0
    spots = Spots(counts, seen, library)
    _, reliability = fitted(spots, library, fitted.neighborhood(spots, library, *row()))
    reliability = reliability[:, 0]
    own = (counts * seen).sum(1)
    torch.testing.assert_close(reliability, own / (own + N_PROFILES))
    assert reliability[0] == 0


def test_entries_that_training_held_out_are_missing_no_longer():
    """A tenth of the entries was missing before; training held out a fifth of them besides."""
    factorisation = CapturedGammaPoisson(3, 2)
    factorisation.missing.copy_(torch.tensor([1.0 - 0.9 * 0.8, 0.9, 0.2]))
    factorisation.release(torch.tensor([0.2, 0.0, 0.2]))
    torch.testing.assert_close(factorisation.missing, torch.tensor([0.1, 0.9, 0.001]))
