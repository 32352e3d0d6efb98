from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lgdist_scvi.module.diffusion import GaussianDiffusion, VectorDiT

N_TIMESTEPS = 1000


@pytest.fixture(scope="module")
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(N_TIMESTEPS)


def cosine_alphas_cumprod(n: int) -> np.ndarray:
    """Cosine schedule (Nichol & Dhariwal 2021, eq. 17), shifted to zero terminal SNR (Lin et al. 2024, algorithm 1)."""
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    beta = np.array([min(1 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)])
    root = np.sqrt(np.cumprod(1 - beta))
    first, last = root[0], root[-1]
    return ((root - last) * first / (first - last)) ** 2


@pytest.mark.parametrize("n_timesteps", [50, 1000, 1500])
def test_schedule_against_the_published_formula(n_timesteps):
    alphas = GaussianDiffusion(n_timesteps).schedule.alphas_cumprod.numpy()
    np.testing.assert_allclose(alphas, cosine_alphas_cumprod(n_timesteps), atol=1e-5)
    assert (np.diff(alphas) < 0).all()
    assert alphas[-1] == 0  # pure noise at the end


def test_noising_and_v_target(diffusion):
    alphas = torch.from_numpy(cosine_alphas_cumprod(N_TIMESTEPS))
    timestep = torch.tensor([0, 10, 499, 998, 999])
    data, noise = torch.randn(2, 5, 7)
    noisy, velocity = diffusion.training_pair(data, noise, timestep)
    alpha, sigma = alphas[timestep].sqrt()[:, None].float(), (1 - alphas[timestep]).sqrt()[:, None].float()
    torch.testing.assert_close(noisy, alpha * data + sigma * noise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(velocity, alpha * noise - sigma * data, atol=1e-4, rtol=1e-4)
    # v and the noisy data give both back
    torch.testing.assert_close(alpha * noisy - sigma * velocity, data, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sigma * noisy + alpha * velocity, noise, atol=1e-3, rtol=1e-3)


def test_last_step_is_pure_noise_and_its_target_minus_the_data(diffusion):
    data, noise = torch.randn(2, 6, 3)
    noisy, velocity = diffusion.training_pair(data, noise, torch.full((6,), N_TIMESTEPS - 1))
    assert torch.equal(noisy, noise)
    assert torch.equal(velocity, -data)


def test_posterior_mean_is_one_evaluation_at_the_last_step(diffusion):
    calls = []

    def predict(x, timestep):
        calls.append((x, timestep))
        return torch.arange(12.0).view(4, 3)

    mean = diffusion.posterior_mean(predict, torch.zeros(4, 3))
    assert torch.equal(mean, -torch.arange(12.0).view(4, 3))
    ((_, timestep),) = calls
    assert timestep.tolist() == [N_TIMESTEPS - 1] * 4


def optimal_denoiser(diffusion: GaussianDiffusion, mean: float, std: float):
    """The v that minimises the training loss on data N(mean, std^2)."""
    alphas = diffusion.schedule.alphas_cumprod

    def predict(x, timestep):
        alpha, sigma = alphas[timestep].sqrt()[:, None], (1 - alphas[timestep]).sqrt()[:, None]
        data = mean + std**2 * alpha / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
        # E[noise | x] from x = alpha data + sigma noise, without dividing by sigma
        noise = sigma / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
        return alpha * noise - sigma * data

    return predict


@pytest.mark.parametrize("n_steps", [1, 2, 5, 250])
@pytest.mark.parametrize("mean", [0.0, -1.5])
def test_samples_of_a_gaussian_of_unit_variance(diffusion, n_steps, mean):
    """What the model diffuses has unit scale; there the flow only shifts, in any number of steps."""
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    sample = diffusion.sample(optimal_denoiser(diffusion, mean, 1.0), noise, n_steps)
    torch.testing.assert_close(sample, noise + mean, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("std", "n_steps", "tolerance"),
    [
        (0.8, 3, 0.05),
        (0.8, 5, 0.02),
        (1.2, 3, 0.02),
        (1.2, 5, 0.01),
        (0.3, 10, 0.1),
        (0.3, 250, 0.002),
        (2.0, 10, 0.01),
        (2.0, 250, 0.002),
    ],
)
def test_samples_of_other_gaussians(diffusion, std, n_steps, tolerance):
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean(0)) / noise.std(0)
    sample = diffusion.sample(optimal_denoiser(diffusion, 1.0, std), noise, n_steps)
    np.testing.assert_allclose(sample.mean(), 1.0, atol=5e-3)
    np.testing.assert_allclose(sample.std() / std, 1.0, atol=tolerance)


def test_samples_of_two_modes(diffusion):
    """Of unit variance, and far from Gaussian: a few steps keep the variance and find the modes."""
    alphas, modes, std = diffusion.schedule.alphas_cumprod.double(), (-0.8, 0.8), 0.6

    def predict(x, timestep):
        alpha, sigma = alphas[timestep].sqrt()[:, None], (1 - alphas[timestep]).sqrt()[:, None]
        variance = alpha**2 * std**2 + sigma**2
        weight = torch.softmax(torch.stack([-((x - alpha * mode) ** 2) / variance / 2 for mode in modes]), dim=0)
        parts = zip(weight, [optimal_denoiser(diffusion, mode, std)(x, timestep) for mode in modes], strict=True)
        return sum(share * v for share, v in parts).to(x)

    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    many, few, fewest = (diffusion.sample(predict, noise, n_steps).sort(0)[0] for n_steps in (500, 5, 3))
    assert all(abs(sample.std() - 1) < 0.01 for sample in (many, few, fewest))
    assert (few - many).abs().mean() < 0.02  # Wasserstein distance
    assert (fewest - many).abs().mean() < 0.03
    assert (noise.sort(0)[0] - many).abs().mean() > 0.05  # as far as Gaussian samples are


def test_samples_share_the_first_evaluation(diffusion):
    noise, predict = torch.randn(6, 2), optimal_denoiser(diffusion, 0.5, 0.8)
    mean = diffusion.posterior_mean(predict, torch.zeros(6, 2))
    asked = []
    sample = diffusion.sample(lambda x, t: asked.append(int(t[0])) or predict(x, t), noise, 5, mean)
    assert len(asked) == 4 and max(asked) < N_TIMESTEPS - 1
    torch.testing.assert_close(sample, diffusion.sample(predict, noise, 5))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 33, 250, 1000])
def test_sampler_asks_for_timesteps_of_the_training_schedule(diffusion, n_steps):
    asked = []

    def predict(x, timestep):
        assert timestep.shape == (len(x),)
        asked.append(timestep[0].item())
        return torch.zeros_like(x)

    diffusion.sample(predict, torch.randn(5, 2), n_steps)
    assert asked[0] == N_TIMESTEPS - 1
    assert len(asked) == n_steps
    assert (np.diff(asked) < 0).all()
    assert set(asked) <= set(range(N_TIMESTEPS))
    # spaced evenly over the whole schedule, not the last steps of it
    assert asked[-1] < 2 * N_TIMESTEPS / n_steps


@pytest.mark.parametrize("n_steps", [0, -1, N_TIMESTEPS + 1])
def test_sampler_refuses_other_numbers_of_steps(diffusion, n_steps):
    with pytest.raises(ValueError, match="n_steps must be between 1 and 1000"):
        diffusion.sample(lambda x, t: x, torch.randn(2, 2), n_steps)


def test_samples_are_a_function_of_the_noise(diffusion):
    noise = torch.randn(6, 2)
    predict = optimal_denoiser(diffusion, 0.5, 0.8)
    state = torch.get_rng_state()
    first, second = diffusion.sample(predict, noise, 10), diffusion.sample(predict, noise, 10)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(diffusion.sample(predict, noise[2:4], 10), first[2:4])


def test_denoiser_learns_one_batch():
    """Overfit: given the condition, the denoiser of a fixed set of vectors finds each of them."""
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(100)
    denoiser = VectorDiT(n_data=4, n_condition=16, n_hidden=32, n_layers=2, n_heads=2)
    data = torch.randn(16, 4)
    tokens, valid = torch.randn(16, 3, 16), torch.ones(16, 3, dtype=torch.bool)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    losses = []
    for _ in range(300):
        timestep = torch.randint(100, (16,))
        timestep[:4] = 99
        noisy, velocity = diffusion.training_pair(data, torch.randn(16, 4), timestep)
        predicted = denoiser(noisy[:, None], timestep[:, None], denoiser.given(tokens, valid))[:, 0]
        loss = ((predicted - velocity) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-30:]) < 0.1 * losses[0]
    with torch.no_grad():
        predict = lambda x, t: denoiser(x[:, None], t[:, None], denoiser.given(tokens, valid))[:, 0]  # noqa: E731
        mean = diffusion.posterior_mean(predict, torch.zeros_like(data))
        sample = diffusion.sample(predict, torch.randn_like(data), 10)
    assert ((mean - data) ** 2).mean() < 0.1 * data.var()
    assert ((sample - data) ** 2).mean() < 0.1 * data.var()


def test_untrained_denoiser_predicts_zero():
    """AdaLN-Zero: it starts as the prediction that the data have no structure."""
    denoiser = VectorDiT(n_data=4, n_condition=8, n_hidden=16, n_layers=2, n_heads=2)
    predicted = denoiser(
        torch.randn(3, 5, 4), torch.randint(100, (3, 5)), denoiser.given(torch.randn(3, 2, 8), torch.ones(3, 2) > 0)
    )
    assert predicted.shape == (3, 5, 4)
    assert (predicted == 0).all()


def test_draws_that_share_a_condition_are_independent():
    torch.manual_seed(0)
    denoiser = VectorDiT(n_data=4, n_condition=8, n_hidden=16, n_layers=2, n_heads=2)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, timestep = torch.randn(3, 5, 4), torch.randint(100, (3, 5))
    tokens, valid = torch.randn(3, 2, 8), torch.ones(3, 2, dtype=torch.bool)
    together = denoiser(x, timestep, denoiser.given(tokens, valid))
    for draw in range(5):
        alone = denoiser(x[:, draw : draw + 1], timestep[:, draw : draw + 1], denoiser.given(tokens, valid))
        torch.testing.assert_close(together[:, draw : draw + 1], alone, atol=1e-5, rtol=1e-5)
