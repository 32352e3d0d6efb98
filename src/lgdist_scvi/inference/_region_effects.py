"""Region effects: smooth residuals of each gene over a slide and over a spot's surroundings, relative to the prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse

from lgdist_scvi import _keys as keys
from lgdist_scvi.data import surroundings
from lgdist_scvi.inference._predictor import Predictor
from lgdist_scvi.module.lgdist import Hide
from lgdist_scvi.module.likelihood import Effect

_SHRINKAGES = (np.inf, *(4.0**power for power in range(8)))  # that are chosen among
_GENES_AT_A_TIME = 256

Sums = tuple[np.ndarray, np.ndarray]
Rows = np.ndarray | slice
"""Rows of the spots whose effects are estimated."""

EVERY_SPOT = slice(None)


@dataclass
class RegionEffects:
    """What region effects are estimated from; a spot does not count for itself.

    Attributes
    ----------
    found, expected
        Of each entry, as the likelihood defines it: visible and expected counts, or residual and 1; (n_obs, n_genes), 0
        where nothing is visible.
    surroundings
        Weights of the surroundings of each spot, (n_obs, n_obs).
    slide
        1 where a spot lies on a slide, (n_slides, n_obs).
    effect
        How an effect acts.
    """

    found: np.ndarray
    expected: np.ndarray
    surroundings: sparse.csr_matrix
    slide: sparse.csr_matrix
    effect: Effect

    def without(self, spots: np.ndarray) -> RegionEffects:
        """As if nothing of some spots, given by their rows, were visible; for questions about the others."""
        visible = np.ones(len(self.found), dtype=np.float32)
        visible[spots] = 0.0
        left = sparse.diags(visible)
        return replace(self, surroundings=self.surroundings @ left, slide=self.slide @ left)

    def estimate(self, shrinkage: np.ndarray, spots: Rows = EVERY_SPOT) -> np.ndarray | None:
        """Effect on every entry, (n_obs, n_genes), from the shrinkage of slides and of surroundings, (2,).

        ``None`` if both are infinite. Entries of spots that are not among `spots` are without effect.
        """
        if np.isinf(shrinkage).all():
            return None
        effects = np.full_like(self.found, self.effect.none)
        for genes in self.blocks():
            of_slide = self.posterior_mean(self.over_slides(genes, spots), shrinkage[0])
            of_surroundings = self.posterior_mean(self.over_surroundings(genes, of_slide, spots), shrinkage[1])
            effects[spots, genes] = self.effect.apply(of_slide, of_surroundings)
        return effects

    def blocks(self) -> Iterator[slice]:
        """Go through the genes in blocks that fit in memory."""
        for start in range(0, self.found.shape[1], _GENES_AT_A_TIME):
            yield slice(start, start + _GENES_AT_A_TIME)

    def over_slides(self, genes: slice, spots: Rows = EVERY_SPOT) -> Sums:
        """Sums of some genes over all other spots of the slides of some spots, (n_spots, n) each."""
        slides = self.slide.T.tocsr()[spots]
        return tuple(
            slides @ (self.slide @ part[:, genes]) - part[spots, genes] for part in (self.found, self.expected)
        )

    def over_surroundings(self, genes: slice, of_slide: np.ndarray, spots: Rows = EVERY_SPOT) -> Sums:
        """Sums over the surroundings of these spots, beside the effect of their slides, (n_spots, n)."""
        weights = self.surroundings[spots]
        return self.effect.beside(weights @ self.found[:, genes], weights @ self.expected[:, genes], of_slide)

    def posterior_mean(self, sums: Sums, shrinkage: float) -> np.ndarray:
        """Effect estimated from sums."""
        if np.isinf(shrinkage):
            return np.full_like(sums[0], self.effect.none)
        return self.effect.posterior_mean(*sums, shrinkage)


@dataclass
class HeldOutEntries:
    """Entries that training held out, (n_entries,) each: where they are, and how predictions of them are judged.

    `predicted` is without region effects; `loss` is a function of predictions and of which entries they are, bool,
    (n_entries,): the sum of their losses.
    """

    rows: np.ndarray
    genes: np.ndarray
    predicted: np.ndarray
    loss: Callable[[np.ndarray, np.ndarray], float]


def choose_shrinkage(effects: RegionEffects, held_out: HeldOutEntries) -> np.ndarray:
    """Shrinkage of slides, and after that of surroundings, that predicts held-out entries best, (2,)."""
    chosen: list[float] = []
    apply = effects.effect.apply
    for _ in range(2):
        losses = np.zeros(len(_SHRINKAGES))
        for genes in effects.blocks():
            here = (held_out.genes >= genes.start) & (held_out.genes < genes.stop)
            place = held_out.rows[here], held_out.genes[here] - genes.start
            predicted, sums = held_out.predicted[here], effects.over_slides(genes)
            if chosen:
                of_slide = effects.posterior_mean(sums, chosen[0])
                predicted, sums = apply(predicted, of_slide[place]), effects.over_surroundings(genes, of_slide)
            there = tuple(part[place] for part in sums)
            losses += [
                held_out.loss(apply(predicted, effects.posterior_mean(there, shrinkage)), here)
                for shrinkage in _SHRINKAGES
            ]
        chosen.append(_SHRINKAGES[int(losses.argmin())])
    return np.array(chosen)


@torch.inference_mode()
def collect(predictor: Predictor, hide: Hide = "nothing") -> tuple[RegionEffects, HeldOutEntries]:
    """What is visible of all spots against what is expected, and the held-out entries of those not held out whole.

    `hide` is ``"nothing"``, or ``"set_aside"`` for what training saw.
    """
    module, dataset, likelihood = predictor.module, predictor.dataset, predictor.module.likelihood
    n_obs = len(dataset)
    found, expected = np.zeros((2, n_obs, len(likelihood.gene_rate)), dtype=np.float32)
    whole = np.zeros(n_obs, dtype=bool)
    if hide == "set_aside":
        whole[module.spots_set_aside(n_obs)] = True
    parts = []
    for place, batch in predictor.with_region_effects(None).batches():
        inputs = module.inputs(batch, hide)
        condition = module.condition_of(inputs)
        shared = module.shared(module.latent_mean(condition), condition)  # (batch, n_genes)
        evidence = likelihood.region_evidence(
            shared, inputs.centre, condition.own, module.exposure(batch), likelihood.usable(batch[keys.LIBRARY])
        )
        found[place], expected[place] = (part.cpu().numpy() for part in evidence)
        rows, genes = ((inputs.score > 0).cpu().numpy() & ~whole[place, None]).nonzero()
        entries = (shared, inputs.target, module.fitted_exposure(batch, inputs).expand_as(shared))
        parts.append((place[rows], genes, *(entry.cpu().numpy()[rows, genes] for entry in entries)))
    rows, genes, predicted, target, exposure = map(np.concatenate, zip(*parts, strict=True))

    def loss(prediction: np.ndarray, which: np.ndarray) -> float:
        given = (torch.from_numpy(part) for part in (prediction, target[which], exposure[which]))
        return float(likelihood.error(*(part.to(likelihood.gene_rate) for part in given)).double().sum())

    ones, here = np.ones(n_obs, dtype=np.float32), np.arange(n_obs)
    slide = sparse.csr_matrix((ones, (dataset.samples, here)), shape=(dataset.samples.max() + 1, n_obs))
    nearby = surroundings(dataset.graph, dataset.coordinates)
    effects = RegionEffects(found, expected, nearby, slide, likelihood.region_effect)
    return effects, HeldOutEntries(rows, genes, predicted, loss)


def fit_region_effects(predictor: Predictor) -> RegionEffects | None:
    """Choose the shrinkage of region effects on held-out entries; what they are estimated from in training, or ``None`` without."""
    module = predictor.module
    module.region_shrinkage.fill_(np.inf)
    if not (module.own_entries and module.experts.in_use):  # they are told by a spot's own entries
        return None
    effects, held_out = collect(predictor, "set_aside")
    module.region_shrinkage.copy_(torch.from_numpy(choose_shrinkage(effects, held_out)))
    return effects


def estimate_region_effects(predictor: Predictor, hide: Hide = "nothing") -> np.ndarray | None:
    """Region effects, (n_obs, n_genes), from all that is observed, or from what training did not hold out."""
    shrinkage = predictor.module.region_shrinkage.cpu().numpy()
    if np.isinf(shrinkage).all():
        return None
    return collect(predictor, hide)[0].estimate(shrinkage)
