"""What held-out entries teach beyond how far intervals reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.inference._calibration import _moments, _signal, _std_factor
from lgdist_scvi.inference._entry_kinds import _per_count
from lgdist_scvi.module.likelihood import PoissonLikelihood, counts_in_library


def squares(ratio: float, n: int, noise: float) -> np.ndarray:
    """Squared errors and claimed variances of n spots, (2, n)."""
    rng = np.random.default_rng(0)
    claimed = rng.uniform(0.5, 1.5, n)
    return np.stack([ratio * claimed + noise * rng.standard_normal(n), claimed])


@pytest.mark.parametrize("ratio", [0.5, 1.0, 9.0])
def test_the_standard_deviation_is_brought_to_the_size_of_the_error(ratio):
    whole = squares(ratio, 1000, noise=0.5)
    factor = _std_factor([whole[:, :400], whole[:, 400:]])
    assert factor == pytest.approx(np.sqrt(ratio), rel=0.05)


def test_what_can_hardly_be_told_leaves_it_as_it_is():
    assert _std_factor([]) == _std_factor([np.zeros((2, 10))]) == 1.0
    # one spot, or spots of which one has entries, cannot say how sure their ratio is
    for error in (-1.0, 0.0, 100.0):
        assert _std_factor([np.array([[error], [1.0]])]) == 1.0
        assert _std_factor([np.array([[error] + [0.0] * 9, [1.0] + [0.0] * 9])]) == 1.0
    assert np.isfinite(_std_factor([np.tile([[-1.0], [1.0]], 20)]))
    known, unknown = (_std_factor([squares(9.0, n, noise=20.0)]) for n in (5000, 10))
    assert 0.8 < unknown < 1.3 and known == pytest.approx(3.0, rel=0.1)
    # errors below sampling noise
    assert 0.5 <= _std_factor([squares(-1.0, 100, noise=5.0)]) < 1.0


def test_a_hidden_spot_is_compared_in_the_library_it_is_predicted_in():
    """Of a spot without a visible count the depth is unknown: it is predicted in the typical library."""
    column = lambda *values: torch.tensor(values)[:, None]  # noqa: E731
    library, shown = column(100.0, 400.0, 50.0, 0.0), column(0.0, 0.0, 30.0, 0.0)
    per_count = _per_count({keys.LIBRARY: library}, {keys.LIBRARY: shown}, torch.tensor(200.0))
    assert per_count.flatten().tolist() == [2.0, 0.5, 1.0, 1.0]
    there = counts_in_library(torch.tensor([[1.0, 0.0, 3.0]]).expand(4, -1), per_count)
    # whole counts, and positive where they were
    assert there.tolist() == [[2.0, 0.0, 6.0], [1.0, 0.0, 2.0], [1.0, 0.0, 3.0], [1.0, 0.0, 3.0]]


@pytest.mark.parametrize("per_count", [1.0, 0.5])
def test_sampling_noise_is_taken_off_sparse_counts_with_little_chance(per_count):
    """With the mean in place of the count as the noise, chance would be four times as large: sqrt(rate) against sqrt(2) rate."""
    rate = torch.full((2000, 500), 0.03)
    mean = 1.6 * rate * per_count
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(0))
    likelihood = PoissonLikelihood(500, n_latent=2, compositional=True)
    square, sampling = likelihood.squared_error(counts, torch.tensor(per_count), mean, torch.ones(2000, 1))
    chance = np.sqrt(2.0) * 0.03 / np.sqrt(counts.numel()) * per_count**2
    error = ((mean - rate * per_count) ** 2).mean()
    assert (square - sampling).double().mean() == pytest.approx(float(error), abs=4 * chance)


def test_signal_is_what_predictions_differ_by():
    """Relative to the predictive variance, whatever the batches."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(500, 3)) * np.array([0.0, 1.0, 3.0]) + 5.0
    parts = [_moments(part, np.full(part.shape, 4.0)) for part in (mean[:100], mean[100:])]
    np.testing.assert_allclose(_signal(parts, 3), mean.var(axis=0) / 4.0, atol=1e-9)
    np.testing.assert_array_equal(_signal([], 3), np.zeros(3))
