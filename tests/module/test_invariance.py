"""A neighbourhood is a set: order, padding and what cannot be seen do not matter."""

from __future__ import annotations

import pytest
import torch


def mean_latent(module, tensors):
    with torch.no_grad():
        condition = module.condition(tensors)
        module.diffusion.trained.fill_(True)
        return {"posterior": condition.mean, "latent": module.latent_mean(condition)}


def assert_same(first, second):
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=2e-5, rtol=1e-5)


def test_order_of_neighbours(build, likelihood, conditioning):
    module, tensors = build(likelihood, conditioning)
    order = torch.argsort(torch.rand(tensors["neighbor_index"].shape), dim=1)
    shuffled = dict(tensors)
    for key in ("neighbor_index", "neighbor_distance", "neighbor_valid"):
        shuffled[key] = tensors[key].gather(1, order)
    first = mean_latent(module, tensors)
    assert_same(first, mean_latent(module, shuffled))
    # the control: other neighbours are another condition
    other = {**tensors, "neighbor_index": tensors["neighbor_index"].flip(0)}
    assert not torch.allclose(first["posterior"], mean_latent(module, other)["posterior"], atol=1e-3)


def test_distance_matters(build):
    module, tensors = build()
    further = {**tensors, "neighbor_distance": tensors["neighbor_distance"] * 3}
    first, second = mean_latent(module, tensors), mean_latent(module, further)
    assert not torch.allclose(first["posterior"], second["posterior"], atol=1e-3)


def test_order_of_the_unique_spots(build):
    module, tensors = build()
    n_unique = len(tensors["neighbor_counts"])
    order = torch.randperm(n_unique, generator=torch.Generator().manual_seed(0))
    shuffled = {key: value[order] if key in UNIQUE else value for key, value in tensors.items()}
    shuffled["neighbor_index"] = torch.argsort(order)[tensors["neighbor_index"]]
    assert_same(mean_latent(module, tensors), mean_latent(module, shuffled))


UNIQUE = ("neighbor_spot", "neighbor_counts", "neighbor_mask", "neighbor_library")


@pytest.mark.parametrize("n_padding", [1, 7])
def test_padding_changes_nothing(build, likelihood, conditioning, n_padding):
    module, tensors = build(likelihood, conditioning)
    batch = len(tensors["X"])
    padded = dict(tensors)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(tensors["neighbor_counts"]), (batch, n_padding), generator=generator)
    padded["neighbor_index"] = torch.cat([tensors["neighbor_index"], index], dim=1)
    distance = torch.rand(batch, n_padding, generator=generator)
    padded["neighbor_distance"] = torch.cat([tensors["neighbor_distance"], distance], dim=1)
    invalid = torch.zeros(batch, n_padding, dtype=torch.bool)
    padded["neighbor_valid"] = torch.cat([tensors["neighbor_valid"], invalid], dim=1)
    first = mean_latent(module, tensors)
    assert_same(first, mean_latent(module, padded))
    padded["neighbor_valid"][:, -n_padding:] = True
    assert not torch.allclose(first["posterior"], mean_latent(module, padded)["posterior"], atol=1e-3)


@pytest.mark.parametrize("n_neighbors", [0, 1, 3])
def test_any_number_of_neighbours(build, conditioning, n_neighbors):
    module, tensors = build("nb", conditioning)
    alone = dict(tensors)
    for key in ("neighbor_index", "neighbor_distance", "neighbor_valid"):
        alone[key] = tensors[key][:, : max(1, n_neighbors)].clone()
    if n_neighbors == 0:
        alone["neighbor_valid"][:] = False
    for value in mean_latent(module, alone).values():
        assert torch.isfinite(value).all()


def test_values_that_cannot_be_seen_are_ignored(build, likelihood):
    module, tensors = build(likelihood)
    noise = torch.randint(1, 100, tensors["X"].shape).float()
    changed = {**tensors, "X": torch.where(tensors["observed_mask"] > 0, tensors["X"], noise)}
    noise = torch.randint(1, 100, tensors["neighbor_counts"].shape).float()
    changed["neighbor_counts"] = torch.where(tensors["neighbor_mask"] > 0, tensors["neighbor_counts"], noise)
    assert not torch.equal(changed["X"], tensors["X"])
    first, second = mean_latent(module, tensors), mean_latent(module, changed)
    assert torch.equal(first["posterior"], second["posterior"])
    assert torch.equal(first["latent"], second["latent"])


def test_an_observed_zero_is_not_a_missing_entry(build):
    """Value and visibility enter together: hiding a zero changes what is known."""
    module, tensors = build()
    zero = (tensors["X"] == 0) & (tensors["observed_mask"] > 0)
    assert zero.any(dim=1).all()
    hidden = {**tensors, "observed_mask": torch.where(zero, 0.0, tensors["observed_mask"])}
    first, second = mean_latent(module, tensors), mean_latent(module, hidden)
    assert (first["posterior"] - second["posterior"]).abs().max(dim=1).values.min() > 1e-4


def test_spots_of_a_batch_do_not_influence_each_other(build, likelihood):
    module, tensors = build(likelihood)
    single = {key: value if key in UNIQUE else value[3:4] for key, value in tensors.items()}
    together, alone = mean_latent(module, tensors), mean_latent(module, single)
    assert_same({key: value[3:4] for key, value in together.items()}, alone)
