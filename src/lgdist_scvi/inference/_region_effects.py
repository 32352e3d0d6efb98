"""Region effects: smooth residuals of each gene over a slide and over a spot's surroundings, relative to the prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch

from lgdist_scvi.data import Surroundings
from lgdist_scvi.inference._compact import fits_in_memory
from lgdist_scvi.inference._predictor import Predictor
from lgdist_scvi.inference._region_evidence import Evidence, KeptEvidence, StreamedEvidence, Sums, evidence_of
from lgdist_scvi.module._spots import Inputs
from lgdist_scvi.module.lgdist import Hide
from lgdist_scvi.module.likelihood import Effect, Likelihood

_SHRINKAGES = (np.inf, *(4.0**power for power in range(8)))  # that are chosen among
_SPOTS_AT_A_TIME = 512


@dataclass
class RegionEffects:
    """What region effects are estimated from; a spot does not count for itself.

    Attributes
    ----------
    evidence
        What is found and expected of each entry.
    surroundings
        Weights of the surroundings of spots, by their rows.
    samples
        Slides of the spots, (n_obs,).
    effect
        How an effect acts.
    left_out
        Rows of spots of which it is as if nothing were visible.
    """

    evidence: Evidence
    surroundings: Surroundings
    samples: np.ndarray
    effect: Effect
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def without(self, spots: np.ndarray) -> RegionEffects:
        """As if nothing of some spots, given by their rows, were visible; for questions about the others."""
        return replace(self, left_out=np.union1d(self.left_out, spots))

    def estimate(self, shrinkage: np.ndarray) -> EstimatedEffects | np.ndarray | None:
        """Effects by the rows of spots, from the shrinkage of slides and of surroundings, (2,); ``None`` if both are infinite.

        An array, (n_obs, n_genes), where the evidence is in memory; else they are computed when asked for.
        """
        if np.isinf(shrinkage).all():
            return None
        estimated = EstimatedEffects(self, shrinkage)
        later = self.evidence.streams or len(self.left_out)
        return estimated if later else estimated[np.arange(len(self.samples))]

    @cached_property
    def of_slides(self) -> Sums:
        """Sums over the spots of each slide, (n_slides, n_genes) each."""
        return self.evidence.of_slides(self.samples, self.left_out)

    def over_slides(self, spots: np.ndarray) -> Sums:
        """Sums over all other spots of the slides of some spots, (n_spots, n_genes) each."""
        samples = self.samples[spots]
        return tuple(whole[samples] - own for whole, own in zip(self.of_slides, self.evidence[spots], strict=True))

    def over_surroundings(self, spots: np.ndarray, of_slide: np.ndarray) -> Sums:
        """Sums over the surroundings of some spots, beside the effect of their slides, (n_spots, n_genes)."""
        weights = self.surroundings[spots]
        weights.data[np.isin(weights.indices, self.left_out)] = 0.0
        return self.effect.beside(*self.evidence.weighted(weights), of_slide)

    def posterior_mean(self, sums: Sums, shrinkage: float) -> np.ndarray:
        """Effect estimated from sums."""
        if np.isinf(shrinkage):
            return np.full_like(sums[0], self.effect.none)
        return self.effect.posterior_mean(*sums, shrinkage)


@dataclass
class EstimatedEffects:
    """Effects on the entries of spots, computed when they are asked for: a spot's are a function of model, data and spot."""

    effects: RegionEffects
    shrinkage: np.ndarray

    def __getitem__(self, spots: np.ndarray) -> np.ndarray:
        """Effects on some spots, by their rows, (n_spots, n_genes)."""
        parts = [self._of(spots[at : at + _SPOTS_AT_A_TIME]) for at in range(0, len(spots), _SPOTS_AT_A_TIME)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def shared(self, spots: np.ndarray) -> np.ndarray | None:
        """What network and experts predict of a part of a slide, (n_spots, n_genes); ``None`` of other spots."""
        evidence = self.effects.evidence
        return evidence.shared(spots) if isinstance(evidence, StreamedEvidence) else None

    def _of(self, spots: np.ndarray) -> np.ndarray:
        effects, (slide, surroundings) = self.effects, self.shrinkage
        sums = effects.evidence[spots] if np.isinf(slide) else effects.over_slides(spots)
        of_slide = effects.posterior_mean(sums, slide)
        if np.isinf(surroundings):
            return of_slide
        of_surroundings = effects.posterior_mean(effects.over_surroundings(spots, of_slide), surroundings)
        return effects.effect.apply(of_slide, of_surroundings)


@dataclass
class HeldOutEntries:
    """Entries of some spots that training held out: of which of the spots each is, and its gene, (n_entries,).

    `rows` are those of the spots; `predicted`, (n_entries,), is without region effects; `loss` is a function of predictions:
    the sum of the losses of the entries.
    """

    rows: np.ndarray
    spot: np.ndarray
    gene: np.ndarray
    predicted: np.ndarray
    loss: Callable[[np.ndarray], float]


def choose_shrinkage(effects: RegionEffects, held_out: Sequence[HeldOutEntries]) -> np.ndarray:
    """Shrinkage of slides, and after that of surroundings, that predicts held-out entries best, (2,)."""
    chosen: list[float] = []
    apply = effects.effect.apply
    for _ in range(2):
        losses = np.zeros(len(_SHRINKAGES))
        for part in held_out:
            place = part.spot, part.gene
            predicted, sums = part.predicted, effects.over_slides(part.rows)
            if chosen:
                of_slide = effects.posterior_mean(sums, chosen[0])
                predicted, sums = apply(predicted, of_slide[place]), effects.over_surroundings(part.rows, of_slide)
            there = tuple(values[place] for values in sums)
            losses += [
                part.loss(apply(predicted, effects.posterior_mean(there, shrinkage))) for shrinkage in _SHRINKAGES
            ]
        chosen.append(_SHRINKAGES[int(losses.argmin())])
    return np.array(chosen)


def _held_out(predictor: Predictor, hide: Hide, evidence: Evidence) -> Iterator[HeldOutEntries]:
    """Held-out entries, batch by batch, of the spots that are not held out whole; evidence is kept on the way."""
    module, likelihood = predictor.module, predictor.module.likelihood
    whole = module.spots_set_aside(len(predictor.dataset))
    for rows, batch, inputs, shared in _looked_at(predictor, hide, evidence):
        chosen = (inputs.score > 0) & ~torch.from_numpy(np.isin(rows, whole)).to(inputs.score.device)[:, None]
        exposure = module.fitted_exposure(batch, inputs).expand_as(shared)[chosen]
        spot, gene = (place.astype(np.int32) for place in chosen.cpu().numpy().nonzero())
        loss = partial(_loss, likelihood, inputs.target[chosen], exposure)
        yield HeldOutEntries(rows, spot, gene, shared[chosen].cpu().numpy(), loss)


def _loss(likelihood: Likelihood, target: torch.Tensor, exposure: torch.Tensor, predicted: np.ndarray) -> float:
    """Sum of the losses of predictions."""
    predicted = torch.from_numpy(predicted).to(likelihood.gene_rate)
    return float(likelihood.error(predicted, target, exposure).double().sum())


@torch.inference_mode()
def _looked_at(
    predictor: Predictor, hide: Hide, evidence: Evidence
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor], Inputs, torch.Tensor]]:
    """Rows of all spots, batch by batch, the batch, what was looked at and what was predicted; evidence is kept."""
    for part in evidence.parts:
        for place, batch in predictor.batches(part):
            sums, inputs, shared = evidence_of(predictor, batch, hide)
            evidence.add(part[place], *sums, shared.cpu().numpy())
            yield part[place], batch, inputs, shared


def _empty(predictor: Predictor) -> KeptEvidence:
    return KeptEvidence(*np.zeros((2, len(predictor.dataset), predictor.n_genes), dtype=np.float32))


def _region_effects(predictor: Predictor, evidence: Evidence) -> RegionEffects:
    dataset = predictor.dataset
    nearby = Surroundings(dataset.graph, dataset.coordinates)
    return RegionEffects(evidence, nearby, dataset.samples, predictor.module.likelihood.region_effect)


def _keep_enough(effects: RegionEffects) -> None:
    """Keep as many parts as consecutive spots need; refuse data whose spots are so scattered that memory does not hold these."""
    evidence, n_obs, n_needed = effects.evidence, len(effects.samples), 0
    size = min(evidence.size, n_obs)
    for first in np.unique(np.linspace(0, n_obs - size, 3).astype(int)):
        near = effects.surroundings[np.arange(first, first + size)].indices
        n_needed = max(n_needed, len(np.unique(evidence.part[near])))
    if n_needed > evidence.n_kept:
        raise ValueError(
            f"spots that follow each other in adata lie far apart: {size:,} of them need {n_needed:,} parts of the slide about them, "
            f"and memory holds {evidence.n_kept:,}; order them once, adata = adata[np.argsort(adata.obsm["
            '"spatial"][:, 1])].copy(), slide by slide if there are several'
        )
    evidence.n_kept = min(evidence.n_kept, n_needed + n_needed // 4 + 1, len(evidence.parts))


def fit_region_effects(predictor: Predictor) -> RegionEffects | None:
    """Choose the shrinkage of region effects on held-out entries; what they are estimated from in training, or ``None`` without."""
    module = predictor.module
    module.region_shrinkage.fill_(np.inf)
    if not (module.own_entries and module.experts.in_use):  # they are told by a spot's own entries
        return None
    predictor = predictor.with_region_effects(None)
    n_obs = len(predictor.dataset)
    in_memory = fits_in_memory(n_obs, predictor.n_genes)
    evidence = _empty(predictor) if in_memory else StreamedEvidence(predictor, "set_aside")
    held_out = list(_held_out(predictor, "set_aside", evidence))
    effects = _region_effects(predictor, evidence)
    module.region_shrinkage.copy_(torch.from_numpy(choose_shrinkage(effects, held_out)))
    return effects


def estimate_region_effects(
    predictor: Predictor, hide: Hide = "nothing", silent: bool = True
) -> EstimatedEffects | np.ndarray | None:
    """Region effects by the rows of spots, from all that is observed, or from what training did not hold out."""
    shrinkage = predictor.module.region_shrinkage.cpu().numpy()
    if np.isinf(shrinkage).all():
        return None
    predictor, n_obs = predictor.with_region_effects(None), len(predictor.dataset)
    if not fits_in_memory(n_obs, predictor.n_genes):
        effects = _region_effects(predictor, StreamedEvidence(predictor, hide, silent=silent))
        _keep_enough(effects)
        return effects.estimate(shrinkage)
    kept = _empty(predictor)
    for _ in _looked_at(predictor, hide, kept):
        pass
    return _region_effects(predictor, kept).estimate(shrinkage)
