"""What the experts, their weights and the gene effects learn after the autoencoder, and from what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lgdist_scvi import LGDiST, datasets
from lgdist_scvi.module import fit_experts
from lgdist_scvi.module.experts import FactorAnalysis, GammaPoissonExpert, HeldOutBatch, best_weights

FITTING = "lgdist_scvi.module.lgdist._fit_experts"


def learnt(module):
    """Of the experts; weights and gene effects are chosen by what is held out."""
    return {name: value.clone() for name, value in module.experts.experts.named_buffers()}


def test_experts_do_not_learn_from_what_is_set_aside(build, likelihood):
    module, tensors = build(likelihood)
    fit_experts(module, [tensors], torch.Generator().manual_seed(0))
    before = learnt(module)
    changed = dict(tensors)
    for counts, mask, spot in (
        ("X", "observed_mask", "spot"),
        ("neighbor_counts", "neighbor_mask", "neighbor_spot"),
    ):
        aside = module.set_aside(tensors[spot]) & (tensors[mask] > 0)
        assert aside.any()
        changed[counts] = torch.where(aside, tensors[counts] + 50.0, tensors[counts])
    fit_experts(module, [changed], torch.Generator().manual_seed(0))
    for name, value in learnt(module).items():
        assert torch.equal(value, before[name]), name
    # what they do look at makes a difference
    fit_experts(module, [{**tensors, "X": tensors["X"].flip(0)}], torch.Generator().manual_seed(0))
    profiles = next(name for name in before if name.endswith("profiles"))
    assert not torch.equal(learnt(module)[profiles], before[profiles])


def test_profiles_are_learnt_with_the_right_neighbours(monkeypatch):
    """Batches come shuffled, and some spots not at all: rows point at neighbours that are there."""
    adata = datasets.simulated_visium(n_spots=80, n_genes=40, seed=0)
    LGDiST.setup_anndata(adata)
    model = LGDiST(adata, n_latent=4, n_hidden=16, n_layers=1, n_heads=2)
    dataset = model.adata_manager.create_torch_dataset()
    spots = np.random.default_rng(0).permutation(80)[:60]
    batches = [
        {key: torch.from_numpy(np.array(value)) for key, value in dataset[part].items()} for part in np.split(spots, 3)
    ]
    seen = []
    monkeypatch.setattr(GammaPoissonExpert, "fit", lambda self, data, *rest: seen.append(data))
    fit_experts(model.module, batches, torch.Generator().manual_seed(0))
    (data,) = seen
    counts, known, library = data.spots.counts, data.spots.visible, data.spots.library
    index, valid = data.index, data.valid
    aside = model.module.set_aside(torch.from_numpy(spots)).numpy()
    np.testing.assert_array_equal(known.numpy(), ~aside)
    np.testing.assert_array_equal(counts.numpy()[~aside], adata.X.toarray()[spots][~aside])
    assert library.shape == (60, 1)
    for row, spot in enumerate(spots):
        found = spots[index[row][valid[row] > 0].numpy()]
        expected = dataset.neighbors[spot]
        assert sorted(found) == sorted(set(expected[expected >= 0]) & set(spots))


def test_as_many_spots_choose_weights_however_few_profiles_are_learnt_from(build, monkeypatch):
    module, tensors = build()
    learnt_from, chosen_on = [], []
    monkeypatch.setattr(GammaPoissonExpert, "fit", lambda self, data, *rest: learnt_from.append(len(data.spots.counts)))

    def counted(likelihood, n_experts, batches):
        batches = list(batches)
        chosen_on.append([len(batch.target) for batch in batches])
        return best_weights(likelihood, n_experts, batches)

    monkeypatch.setattr(f"{FITTING}.best_weights", counted)
    monkeypatch.setattr(f"{FITTING}._N_SPOTS", 60)
    monkeypatch.setattr(f"{FITTING}._N_PROFILE_ENTRIES", 24 * len(module.likelihood.gene_rate))
    fit_experts(module, [tensors] * 5, torch.Generator().manual_seed(0))
    assert learnt_from == [24]
    assert chosen_on == [[24] * 3] * 2


def test_experts_are_not_used_where_nothing_of_a_spot_is_visible(build, likelihood):
    module, tensors = build(likelihood)
    tensors = {**tensors, "observed_mask": tensors["observed_mask"].clone()}
    tensors["observed_mask"][0] = 0.0
    condition = module.condition(tensors)
    assert (condition.correction[0] == 0).all()
    assert (condition.correction[1:] != 0).any()
    hidden, _ = build(likelihood, "neighborhood")
    assert not hidden.experts.in_use


def test_factors_that_do_not_explain_anything_leave_hidden_spots_alone(build):
    module, tensors = build("nb")
    (linear,) = (expert for expert in module.experts.experts if isinstance(expert, FactorAnalysis))
    linear.loadings.zero_()
    tensors = {**tensors, "observed_mask": tensors["observed_mask"].clone()}
    tensors["observed_mask"][0] = 0.0
    assert (module.condition(tensors).correction[0] == 0).all()


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_gene_effects_are_learnt_from_two_halves_of_what_is_observed(build, likelihood, monkeypatch):
    module, tensors = build(likelihood)
    effects, seen = module.likelihood.gene_effects, []
    evidence = effects.evidence
    monkeypatch.setattr(effects, "evidence", lambda *halves: seen.append(halves) or evidence(*halves))
    fit_experts(module, [tensors], torch.Generator().manual_seed(0))
    ((rate, first, exposure, second, exposure_again),) = seen
    assert (first > 0).any() and (second > 0).any()
    unobserved = tensors["observed_mask"] == 0
    aside = module.set_aside(tensors["spot"])
    assert unobserved.any() and aside.any() and not second[aside].any() and not exposure_again[aside].any()
    torch.testing.assert_close((first * ~aside) + second, tensors["X"] * ~aside)
    assert not exposure[unobserved].any() and not exposure_again[unobserved].any()
    # both halves are as deep as each other, one of them as estimated from what is seen
    ratio = (exposure / exposure_again)[~unobserved & ~aside]
    assert 0.8 < ratio.mean() < 1.25
    assert (effects.variance >= 0).all() and effects.variance.isfinite().all()
    # what an earlier training learnt plays no part
    learnt = effects.variance.clone()
    effects.variance.fill_(5.0)
    fit_experts(module, [tensors], torch.Generator().manual_seed(0))
    torch.testing.assert_close(effects.variance, learnt, rtol=0, atol=0)


def test_the_own_count_moves_its_rate_and_hidden_ones_only_as_the_sum_does(build):
    module, tensors = build("nb")
    module.likelihood.gene_effects.variance.fill_(0.5)
    hidden = tensors["observed_mask"] == 0
    condition = module.condition(tensors)
    counts, exposure = condition.own
    with_own = module.decode(condition.mean, condition)
    condition.own = (torch.zeros_like(counts), torch.zeros_like(exposure))
    without = module.decode(condition.mean, condition)
    torch.testing.assert_close(with_own.sum(1), torch.ones(len(counts)))
    moved = with_own / without
    for one, unseen in zip(moved, hidden, strict=True):
        torch.testing.assert_close(one[unseen], one[unseen][:1].expand(int(unseen.sum())))
    by_sum = torch.stack([one[unseen][0] for one, unseen in zip(moved, hidden, strict=True)])[:, None]
    more = counts > exposure * without
    assert (moved / by_sum)[more & ~hidden].min() > 1.0 and (moved / by_sum)[~more & ~hidden].max() <= 1.0


@pytest.mark.parametrize(("n_shared", "alike"), [(0, False), (1_000_000, True)])
def test_groups_of_genes_have_weights_of_their_own(build, monkeypatch, n_shared, alike):
    """An expert that knows the rare genes and is wrong about the others; few entries lean on those of all genes."""
    module, tensors = build("normal")
    monkeypatch.setattr("lgdist_scvi.module.experts._averaging._N_SHARED", n_shared)
    gene_rate = module.likelihood.gene_rate
    rare = gene_rate < gene_rate.median()
    inputs = module.inputs(tensors, "set_aside")
    with torch.no_grad():
        condition = module.condition_of(inputs)
        network = module.autoencoder.decode(condition.mean, condition)
        measured = torch.log1p(tensors["X"] / module.exposure(tensors) * 1e4)
        held_out = HeldOutBatch(
            network,
            torch.where(rare, measured, network + 3.0)[None],
            torch.ones(len(network), 1),
            inputs.target,
            module.fitted_exposure(tensors, inputs),
            inputs.score > 0,
        )
        (weights,) = best_weights(module.likelihood, 1, [held_out])
    assert weights.shape == rare.shape
    order = gene_rate.argsort()
    sixth = len(order) // 6
    assert weights[order[-sixth:]].max() < 0.5
    if alike:
        assert len(weights.unique()) == 1
    else:
        np.testing.assert_allclose(weights[order[:sixth]].numpy(), 1.0)


def test_counts_have_one_weight_for_all_genes(build):
    module, tensors = build("nb")
    fit_experts(module, [tensors], torch.Generator().manual_seed(0))
    for weights in (module.experts.weights_hidden, module.experts.weights_visible):
        assert torch.equal(weights, weights[:, :1].expand_as(weights))
