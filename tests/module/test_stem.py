"""The Stem module: what each network may learn from, and what the expert solves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.module.stem import ImageComponents, StemConfig, StemModule

N_GENES, N_FEATURES, N_SPOTS = 12, 5, 30
CONFIG = StemConfig(
    n_components=5, n_latent=4, n_hidden=16, n_layers=1, n_heads=2, dropout_rate=0.2, hide_patch=0.2, n_denoiser_hidden=16,
    n_denoiser_layers=1, n_denoiser_heads=2, n_timesteps=20, n_draws=3, decoded_weight=0.1,
)  # fmt: skip


@pytest.fixture
def module() -> StemModule:
    torch.manual_seed(0)
    module = StemModule("nb", N_GENES, N_FEATURES, compositional=False, per_slide=True, n_folds=3, config=CONFIG)
    module.set_basis(np.random.default_rng(0).gamma(2.0, 0.04, (N_SPOTS, N_GENES)))
    return module


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Spots in a circle, ten of each part of the slides."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(N_SPOTS, N_FEATURES, generator=generator)
    library = torch.full((N_SPOTS, 1), 200.0)
    rate = torch.rand(N_SPOTS, N_GENES, generator=generator) / N_GENES
    counts = torch.poisson(rate * library, generator=generator)
    place = torch.arange(N_SPOTS)
    return {
        keys.SPOT: place[:, None],
        keys.COUNTS: counts,
        keys.MASK: torch.ones_like(counts),
        keys.LIBRARY: library,
        keys.IMAGE: image,
        keys.NEIGHBOR_COUNTS: counts,
        keys.NEIGHBOR_LIBRARY: library,
        keys.NEIGHBOR_IMAGE: image,
        keys.NEIGHBOR_INDEX: torch.stack([(place - 1) % N_SPOTS, (place + 1) % N_SPOTS], dim=1),
        keys.NEIGHBOR_DISTANCE: torch.ones(N_SPOTS, 2),
        keys.NEIGHBOR_VALID: torch.ones(N_SPOTS, 2, dtype=torch.bool),
        keys.FOLD: (place // 10)[:, None],
        keys.TARGET_RATE: rate,
        keys.TARGET_LATENT: torch.randn(N_SPOTS, 2, CONFIG.n_latent, generator=generator),
    }


def gradients(module: StemModule, batch: dict[str, torch.Tensor]) -> list[list[torch.Tensor]]:
    module.zero_grad()
    torch.manual_seed(1)
    module(batch)[2].loss.backward()
    return [[p.grad.clone() for p in network.parameters() if p.grad is not None] for network in module.networks]


def test_a_network_learns_nothing_of_the_slides_that_it_leaves_out(module, batch):
    module.train()
    before = gradients(module, batch)
    target = batch[keys.TARGET_RATE].clone()
    target[:10] *= 3.0
    after = gradients(module, batch | {keys.TARGET_RATE: target})
    for one, other in zip(before[0], after[0], strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))


def test_the_expert_learns_nothing_of_the_slides_that_it_leaves_out(module, batch):
    ridge = module.experts.experts[0]
    module.eval().fit_experts([batch], torch.Generator())
    before, penalty = ridge.coefficients.clone(), float(ridge.penalty)
    latent = batch[keys.TARGET_LATENT].clone()
    latent[:10] += 1.0
    module.fit_experts([batch | {keys.TARGET_LATENT: latent}], torch.Generator())
    if float(ridge.penalty) == penalty:
        torch.testing.assert_close(ridge.coefficients[0], before[0])
        assert not torch.allclose(ridge.coefficients[1], before[1])


def test_the_expert_is_ridge_regression(module, batch):
    """As scikit-learn solves it."""
    from sklearn.linear_model import Ridge

    module.eval().fit_experts([batch], torch.Generator())
    ridge = module.experts.experts[0]
    around = batch[keys.IMAGE][batch[keys.NEIGHBOR_INDEX]].mean(1)
    design = torch.cat([batch[keys.IMAGE], around], dim=1).double().numpy()
    target = batch[keys.TARGET_LATENT].mean(1).double().numpy()
    theirs = Ridge(alpha=float(ridge.penalty) * N_SPOTS).fit(design, target)
    np.testing.assert_allclose(ridge.coefficients[-1, :-1].numpy(), theirs.coef_.T, atol=1e-3)


def test_counts_are_not_looked_at(module, batch):
    module.eval().fit_experts([batch], torch.Generator())
    one = module.condition(batch)
    changed = {name: torch.zeros_like(batch[name]) for name in (keys.COUNTS, keys.MASK, keys.NEIGHBOR_COUNTS)}
    other = module.condition(batch | changed)
    assert torch.equal(one.mean, other.mean) and torch.equal(one.correction, other.correction)


def test_a_missing_patch_is_not_looked_at(module, batch):
    """Whatever stands in its place."""
    module.eval()
    image = batch[keys.IMAGE].clone()
    image[4] = torch.nan
    condition = module.condition(batch | {keys.IMAGE: image})
    assert torch.isfinite(condition.mean).all()
    rest = torch.arange(N_SPOTS) != 4
    torch.testing.assert_close(condition.mean[rest], module.condition(batch).mean[rest])


def test_latents_give_rates_back(module):
    """All of them where there are as many axes as genes."""
    rate = np.random.default_rng(1).gamma(2.0, 0.04, (50, N_GENES))
    whole = StemModule(
        "nb", N_GENES, N_FEATURES, False, True, 3, StemConfig(**{**CONFIG.__dict__, "n_latent": N_GENES})
    )
    whole.set_basis(rate)
    again = whole.decoded(torch.from_numpy(whole.latent_of(rate)))
    np.testing.assert_allclose(again.numpy(), np.maximum(rate, 0.02 / N_GENES), rtol=1e-3)


def test_components_of_a_slide_do_not_depend_on_its_stain():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6)).astype(np.float32)
    samples = np.repeat([0, 1], 200)
    components = ImageComponents([6], 4)
    components.fit(features, samples)
    plain = components.transform(features, samples)
    stained = components.transform(features * np.where(samples, 3.0, 1.0)[:, None] + samples[:, None] * 2.0, samples)
    assert np.abs(stained - plain).max() < 0.35 * plain.std()
    features[7] = np.nan
    missing = components.transform(features, samples)
    assert np.isnan(missing[7]).all() and np.isfinite(np.delete(missing, 7, axis=0)).all()
    alone = ImageComponents([6], 4, per_slide=False)
    alone.fit(features, samples)
    shifted = alone.transform(features + 1.0, samples)
    assert np.abs(shifted - alone.transform(features, samples))[:5].max() > 0.5
