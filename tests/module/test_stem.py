"""The Stem module: what each network may learn from, and what the expert solves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.module.stem import GeneStemModule, ImageComponents, StemConfig, StemModule
from lgdist_scvi.module.stem._kernel import ImageKernel
from lgdist_scvi.module.stem._patches import PatchInputs

N_GENES, N_FEATURES, N_SPOTS = 12, 5, 30
CONFIG = StemConfig(
    n_components=5, n_latent=4, n_hidden=16, n_layers=1, n_heads=2, dropout_rate=0.2, hide_patch=0.2, n_denoiser_hidden=16,
    n_denoiser_layers=1, n_denoiser_heads=2, n_timesteps=20, n_draws=3, decoded_weight=0.1,
)  # fmt: skip


@pytest.fixture
def module() -> StemModule:
    torch.manual_seed(0)
    module = StemModule("nb", N_GENES, [N_FEATURES], compositional=False, per_slide=True, n_folds=3, config=CONFIG)
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
    expert = module.experts.experts[0]
    fit = module.eval().fit_experts
    fit([batch], torch.Generator())
    before, chosen = expert.coefficients.clone(), (float(expert.length), float(expert.penalty))
    latent = batch[keys.TARGET_LATENT].clone()
    latent[:10] += 0.01
    fit([batch | {keys.TARGET_LATENT: latent}], torch.Generator())
    assert (float(expert.length), float(expert.penalty)) == chosen
    torch.testing.assert_close(expert.coefficients[0], before[0])
    assert not torch.allclose(expert.constant[1], expert.constant[0])
    assert not torch.allclose(expert.coefficients[-1], before[-1], atol=1e-6)
    without = expert.landmarks.abs().sum(1) > 0
    assert without.sum() == N_SPOTS and ((before[0].abs().sum(1) > 0) & without).sum() == N_SPOTS - 10


def test_the_expert_is_kernel_ridge_regression(module, batch):
    """As scikit-learn solves it."""
    from sklearn.kernel_ridge import KernelRidge

    module.eval().fit_experts([batch], torch.Generator())
    expert = module.experts.experts[0]
    around = batch[keys.IMAGE][batch[keys.NEIGHBOR_INDEX]].mean(1)
    parts = [values / values.square().sum(1).mean().sqrt() for values in (batch[keys.IMAGE], around)]
    design = torch.cat(parts, dim=1).double().numpy() / 2**0.5
    target = batch[keys.TARGET_LATENT].mean(1).double().numpy()
    theirs = KernelRidge(alpha=float(expert.penalty), kernel="rbf", gamma=0.5 / float(expert.length) ** 2)
    predicted = target.mean(0) + theirs.fit(design, target - target.mean(0)).predict(design)
    inputs = PatchInputs.of({name: value for name, value in batch.items() if name != keys.FOLD})
    module.experts.weights_hidden.fill_(1.0)
    rate, _ = expert(inputs.centre, inputs.centre.library, around)
    level = expert.level[-1].double().numpy()
    expected = module.likelihood.expected(
        expert.basis(torch.from_numpy(predicted).float()) + torch.from_numpy(level).float()
    )
    torch.testing.assert_close(rate, expected, rtol=2e-3, atol=1e-7)


def test_few_landmarks_do_for_many_spots(module, batch, monkeypatch):
    monkeypatch.setattr("lgdist_scvi.module.stem._kernel._N_LANDMARKS", 12)
    few = ImageKernel(N_GENES, CONFIG.n_latent, N_FEATURES, 3, module.likelihood)
    few.initialise(module.likelihood, torch.zeros(0), torch.zeros(0), torch.zeros(0))
    module.experts.experts[0] = few
    module.set_basis(np.random.default_rng(0).gamma(2.0, 0.04, (N_SPOTS, N_GENES)))
    module.eval().fit_experts([batch], torch.Generator())
    assert few.landmarks.shape == (12, 2 * N_FEATURES)
    condition = module.condition(batch)
    assert torch.isfinite(condition.experts).all() and condition.experts.std(1).mean() > 0


def test_an_image_without_a_certain_gain_is_not_followed(module, batch):
    """Then the genes' mean rates are predicted, and samples keep their spread."""
    module.likelihood.gene_rate.copy_(batch[keys.COUNTS].sum(0) / batch[keys.LIBRARY].sum())
    module.eval().fit_experts([batch], torch.Generator())
    assert module.trust == 0  # counts that have nothing to do with the image
    condition = module.condition(batch)
    expected = module.likelihood.gene_rate.expand(N_SPOTS, -1)
    torch.testing.assert_close(module.decode(condition.mean, condition), expected)
    shifted = module.decode(condition.mean + condition.spread, condition)
    assert ((shifted - expected).abs() > 0.01 * expected).any()
    module.trust.fill_(1.0)
    followed = module.condition(batch)
    rate = module.decode(followed.mean, followed) * batch[keys.LIBRARY]
    told = batch | {keys.COUNTS: torch.poisson(50 * rate, generator=torch.Generator().manual_seed(0))}
    told[keys.LIBRARY] = 50 * batch[keys.LIBRARY]
    module.fit_experts([told | {keys.TARGET_RATE: rate / batch[keys.LIBRARY]}], torch.Generator())
    assert module.trust > 0


def test_the_dispersion_of_a_gene_is_that_of_its_counts(module, batch):
    """Around what is predicted: a gene that varies more than Poisson noise gets a smaller theta."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.poisson(torch.full((N_SPOTS, N_GENES), 40.0), generator=generator)
    counts[:, 0] *= 2.0 * torch.bernoulli(torch.full((N_SPOTS,), 0.5), generator=generator)
    module.eval().fit_experts([batch | {keys.COUNTS: counts}], torch.Generator())
    theta = module.likelihood.theta
    assert theta[0] < 0.3 * theta[1:].min()
    assert all(parameter.grad is None for parameter in module.likelihood.parameters())


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
        "nb", N_GENES, [N_FEATURES], False, True, 3, StemConfig(**{**CONFIG.__dict__, "n_latent": N_GENES})
    )
    whole.set_basis(rate)
    again = whole.decoded(torch.from_numpy(whole.latent_of(rate)))
    np.testing.assert_allclose(again.numpy(), np.maximum(rate, 0.02 / N_GENES), rtol=1e-3)


def test_components_of_a_slide_do_not_depend_on_its_stain():
    """Nor on half of its contrast, which is of the mixture of tissues too."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6)).astype(np.float32)
    samples = np.repeat([0, 1], 200)
    components = ImageComponents([6], 4)
    components.fit(features, samples)
    plain = components.transform(features, samples)
    stained = components.transform(features + samples[:, None] * 20.0, samples)
    assert np.abs(stained - plain).max() < 0.25 * plain.std()
    contrast = components.transform(features * np.where(samples, 3.0, 1.0)[:, None], samples)
    np.testing.assert_allclose(contrast[200:].std() / plain[200:].std(), 3**0.5, rtol=0.02)
    features[7] = np.nan
    missing = components.transform(features, samples)
    assert np.isnan(missing[7]).all() and np.isfinite(np.delete(missing, 7, axis=0)).all()
    alone = ImageComponents([6], 4, per_slide=False)
    alone.fit(features, samples)
    shifted = alone.transform(features + 1.0, samples)
    assert np.abs(shifted - alone.transform(features, samples))[:5].max() > 0.5


def test_encoders_count_alike():
    """However many features each of them has, and on whatever scale."""
    rng = np.random.default_rng(0)
    features = np.hstack([rng.normal(size=(300, 40)), 1e3 * rng.normal(size=(300, 3))]).astype(np.float32)
    components = ImageComponents([40, 3], 8)
    components.fit(features, np.zeros(300, dtype=int))
    assert components.n_components == 11
    squares = (components.transform(features, np.zeros(300, dtype=int)) ** 2).mean(0)
    np.testing.assert_allclose(squares[:8].sum(), squares[8:].sum(), rtol=1e-2)
    assert (components.axes[:40, 8:] == 0).all() and (components.axes[40:, :8] == 0).all()


def test_in_gene_space_the_denoiser_learns_nothing_of_the_first_part_which_validates(batch):
    """And log rates come back from their standardised values."""
    torch.manual_seed(0)
    module = GeneStemModule("nb", N_GENES, [N_FEATURES], False, True, 3, replace(CONFIG, denoiser="genes")).eval()
    rate = batch[keys.TARGET_RATE].numpy()
    module.set_basis(rate)
    latent = torch.from_numpy(module.latent_of(rate))
    torch.testing.assert_close(latent.square().mean(0), torch.ones(N_GENES))
    np.testing.assert_allclose(module.decoded(latent), np.maximum(rate, 0.02 / N_GENES), rtol=1e-4)
    batch[keys.TARGET_LATENT] = latent[:, None]
    changed = batch | {keys.TARGET_LATENT: latent[:, None].clone(), keys.COUNTS: batch[keys.COUNTS].clone()}
    changed[keys.TARGET_LATENT][:10] += 1.0
    changed[keys.COUNTS][:10] += 1.0
    losses = {
        hide: [
            torch.stack(module.diffusion_loss(one, hide, torch.Generator().manual_seed(0))) for one in (batch, changed)
        ]
        for hide in ("random", "set_aside")
    }
    assert torch.equal(*losses["random"]) and not torch.isclose(*losses["set_aside"]).any()
    assert module.n_judged == 1


def test_the_weight_of_generated_patches_is_of_a_training_and_not_saved(module):
    """Models that were saved before there was one can be loaded."""
    assert "synthetic_weight" not in module.state_dict() and module.synthetic_weight == 0
