"""The mixture expert of captured values against counts that profiles made, of which zeros and some others are not seen."""

from __future__ import annotations

import pytest
import torch

from lgdist_scvi.module._captured import CapturedMixture, CapturedMixtures

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
    mixtures = CapturedMixtures(rates.mean(0), N_PROFILES, 2)
    mixtures.fit(counts, seen, library, *row(), rates.mean(0), generator=torch.Generator().manual_seed(1))
    return mixtures


def row():
    """Rows of the spots to the left and right, and which of them there are."""
    index = torch.arange(N_SPOTS)[:, None] + torch.tensor([-1, 1])
    there = (index >= 0) & (index < N_SPOTS)
    return index.clamp(0, N_SPOTS - 1), there.float()


def test_zeros_are_told_from_missing_counts(data, fitted):
    """As many counts are found to be missing as are, and rates come out as if the zeros were known."""
    counts, seen, rates, library = data
    mixture = fitted.mixtures[0]
    assert mixture.missing[: N_GENES // 2].mean() == pytest.approx(MISSING, abs=0.05)
    assert mixture.missing[N_GENES // 2 :].mean() < 0.05
    usages, *_ = fitted.around(counts, seen, library, *row())
    found = fitted.mixtures(counts, seen, library, usages)
    assert (found.mean(0) / rates.mean(0) - 1).abs().mean() < 0.1
    # the mean of what is seen alone is far from that
    of_seen = (counts * seen).sum(0) / (library * seen).sum(0)
    assert (of_seen / rates.mean(0) - 1).abs().mean() > 0.2


def test_captured_values_that_are_missing_are_predicted(data, fitted):
    counts, seen, rates, library = data
    hidden = (counts > 0) & (seen == 0)
    values = torch.log1p(counts / library * 1e4)
    predicted = fitted(counts, seen, library, fitted.around(counts, seen, library, *row()))
    mean = (values * seen).sum(0) / seen.sum(0)
    known = fitted.likelihood.expected_captured(library * rates, library)
    floor, error, of_means = (((what - values)[hidden] ** 2).mean() for what in (known, predicted, mean))
    assert error - floor < 0.5 * (of_means - floor)
    assert abs(float((predicted - values)[hidden].mean())) < 0.05


def test_weight_of_an_unseen_entry_is_its_probability_of_being_a_zero(data):
    *_, rates, _ = data
    mixture = CapturedMixture(rates.mean(0), N_PROFILES)
    mixture.missing.fill_(0.2)
    visible = torch.zeros(2, N_GENES)
    visible[0, 0] = 1.0
    library, usage = torch.tensor([[100.0], [100.0]]), mixture.typical_usage.expand(2, -1)
    known = mixture.known(visible, library, usage)
    zero = 0.8 * torch.exp(-100.0 * rates.mean(0))
    torch.testing.assert_close(known[0, 1:], (zero / (zero + 0.2))[1:])
    assert known[0, 0] == 1.0
    assert not known[1].any()  # a spot that is hidden whole says nothing about zeros


def test_what_neighbours_stray_by_is_carried_over(data):
    """One gene is high in one half of the slide, where no profile can follow it."""
    *_, rates, library = data
    torch.manual_seed(2)
    factor = torch.ones_like(rates)
    factor[: N_SPOTS // 2, 3] = 4.0
    strayed = torch.poisson(library * rates.mean(0) * factor)
    seen = (strayed > 0).float()
    mixtures = CapturedMixtures(rates.mean(0), 1, 1)
    mixtures.fit(strayed, seen, library, *row(), rates.mean(0), generator=torch.Generator().manual_seed(1))
    assert mixtures.shared.variance[3] == mixtures.shared.variance.max()
    around = mixtures.around(strayed, seen, library, *row())
    carried = mixtures(strayed, seen, library, around)
    mixtures.shared.variance.zero_()
    alone = mixtures(strayed, seen, library, around)
    moved = (carried - alone)[:, 3]
    assert moved[: N_SPOTS // 2].mean() > 0.05 > -0.05 > moved[N_SPOTS // 2 :].mean()


def test_reliability_is_the_share_of_own_counts(data, fitted):
    counts, seen, *_ = data
    seen = seen.clone()
    seen[0] = 0.0
    reliability = fitted.reliability(counts, seen)[:, 0]
    own = (counts * seen).sum(1)
    torch.testing.assert_close(reliability, own / (own + N_PROFILES))
    assert reliability[0] == 0


def test_entries_that_training_set_aside_are_missing_no_longer():
    """A tenth of the entries was missing before; training set aside a fifth of them besides."""
    mixture = CapturedMixture(torch.full((3,), 0.1), 2)
    mixture.missing.copy_(torch.tensor([1.0 - 0.9 * 0.8, 0.9, 0.2]))
    mixture.show_set_aside(torch.tensor([0.2, 0.0, 0.2]))
    torch.testing.assert_close(mixture.missing, torch.tensor([0.1, 0.9, 0.001]))
