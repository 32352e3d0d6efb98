"""Samples: shapes, seeds, and independence of everything but seed and spot."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch


def draw(model, **kwargs):
    kwargs = {"n_samples": 4, "return_mean": False, "observed": "model", **kwargs}
    return model.get_completed_expression(**kwargs)


def test_shape_is_samples_spots_genes(trained, tissue):
    samples = draw(trained)
    assert samples.shape == (4, *tissue.shape)
    assert samples.dtype == np.float32
    genes = list(tissue.var_names[[7, 1]])
    part = draw(trained, indices=[3, 50], gene_list=genes)
    assert part.shape == (4, 2, 2)
    np.testing.assert_allclose(part, samples[:, [3, 50]][:, :, [7, 1]], rtol=1e-5, atol=1e-5)


def test_samples_differ_among_each_other_and_between_spots_and_seeds(trained):
    samples = draw(trained, seed=0)
    assert np.abs(samples[0] - samples[1]).mean() > 1e-3
    assert np.abs(samples - draw(trained, seed=1)).mean() > 1e-3
    deviation = samples - samples.mean(axis=0)
    # not the same noise in every spot
    assert np.abs(np.corrcoef(deviation[0, 10], deviation[0, 11])[0, 1]) < 0.999


def test_mean_over_samples(trained):
    """With return_mean the rates are averaged, not their logarithms."""
    samples = draw(trained, n_samples=5, seed=2)
    mean = trained.get_completed_expression(n_samples=5, observed="model", seed=2, return_numpy=True)
    np.testing.assert_allclose(mean, np.log1p(np.expm1(samples).mean(axis=0)), rtol=1e-4, atol=1e-5)


def test_captured_values_are_averaged_as_they_are(captured):
    samples = draw(captured, n_samples=5, seed=2)
    mean = captured.get_completed_expression(n_samples=5, observed="model", seed=2, return_numpy=True)
    np.testing.assert_allclose(mean, samples.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_one_sample(trained, tissue):
    frame = draw(trained, n_samples=1, seed=5)
    assert list(frame.columns) == list(tissue.var_names)
    np.testing.assert_allclose(frame.to_numpy(), draw(trained, n_samples=3, seed=5)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 33, None])
def test_samples_do_not_depend_on_the_batch(trained, tissue, batch_size):
    whole = draw(trained, seed=4)
    order = np.random.default_rng(0).permutation(tissue.n_obs)[:40]
    part = draw(trained, seed=4, indices=order, batch_size=batch_size)
    np.testing.assert_allclose(part, whole[:, order], rtol=1e-5, atol=1e-5)


def test_samples_do_not_depend_on_the_global_generators_and_leave_them_alone(trained):
    results = []
    for seed in (0, 123):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()
        results.append(draw(trained, seed=9, indices=range(20)))
        trained.get_prediction_interval(0.9, indices=range(20))
        trained.get_normalized_expression(n_samples=2, indices=range(20))
        trained.get_latent_representation(indices=range(20), give_mean=False)
        after = torch.get_rng_state(), np.random.get_state()
        assert torch.equal(before[0], after[0])
        assert before[1][0] == after[1][0]
        np.testing.assert_array_equal(before[1][1], after[1][1])
        assert before[1][2:] == after[1][2:]
    np.testing.assert_array_equal(*results)


def test_seed_none_is_the_seed_of_the_settings(trained):
    scvi.settings.seed = 6
    from_settings = draw(trained, indices=range(10))
    np.testing.assert_array_equal(from_settings, draw(trained, indices=range(10), seed=6))
    scvi.settings.seed = None
    np.testing.assert_array_equal(draw(trained, indices=range(10)), draw(trained, indices=range(10)))


def test_posterior_mean_is_deterministic_and_near_the_mean_of_samples(trained):
    first = trained.get_completed_expression(observed="model", return_numpy=True)
    np.testing.assert_array_equal(first, trained.get_completed_expression(observed="model", seed=99, return_numpy=True))
    samples = draw(trained, n_samples=100)
    bias = np.abs(samples.mean(axis=0) - first).mean()
    assert bias < 0.5 * samples.std(axis=0).mean() + 0.05


def test_number_of_sampler_steps(trained):
    with pytest.raises(ValueError, match="n_steps must be between 1 and 100, got 101"):
        draw(trained, n_steps=101)
    with pytest.raises(ValueError, match="n_steps must be a whole number of at least 1, got 0"):
        draw(trained, n_steps=0)
    few, many = draw(trained, n_steps=10, indices=range(30)), draw(trained, n_steps=100, indices=range(30))
    assert not np.array_equal(few, many)
    # converged: the same noise gives nearly the same samples
    assert np.corrcoef(few.ravel(), many.ravel())[0, 1] > 0.98


def test_without_a_diffusion_samples_come_from_the_posterior(fit, tissue):
    model = fit(tissue.copy(), 2, {"mask_layer": "known"}, {"stage": "vae"})
    samples = draw(model, n_samples=50)
    assert np.isfinite(samples).all()
    assert samples.std(axis=0).mean() > 1e-3
