"""What genes stray by over a slide and around a spot, from what network and experts expect of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from scipy import sparse

from lgdist_scvi.data import surroundings
from lgdist_scvi.model._batches import BatchMixin
from lgdist_scvi.model._record import data_fingerprint

if TYPE_CHECKING:
    from anndata import AnnData

_SHRINKAGES = (np.inf, *(4.0**power for power in range(8)))  # that are chosen among
_GENES_AT_A_TIME = 256

Sums = tuple[np.ndarray, np.ndarray]
Rows = np.ndarray | slice
"""Of the spots that are asked about."""

EVERY_SPOT = slice(None)


@dataclass
class Strays:
    """How far what is visible of each spot lies from what is expected of it.

    Rates stray by factors, gamma distributed around 1: the posterior mean of one is (c + counts found) / (c + counts expected),
    with the shape c of its prior. Captured values stray by what is added to them, of mean 0: (sum of what they lie above what is
    expected) / (c + their number). A spot does not count for itself.

    Attributes
    ----------
    found, expected
        Counts that are visible, and those expected; or how far visible values lie above what is expected, and 1 for each;
        (n_obs, n_genes), 0 where nothing is visible.
    around
        Weights of the spots around each, (n_obs, n_obs).
    slide
        1 where a spot lies on a slide, (n_slides, n_obs).
    rates
        Whether it is about rates.
    """

    found: np.ndarray
    expected: np.ndarray
    around: sparse.csr_matrix
    slide: sparse.csr_matrix
    rates: bool

    def without(self, spots: np.ndarray) -> Strays:
        """As if nothing of some spots, given by their rows, were visible; for questions about the others."""
        visible = np.ones(len(self.found), dtype=np.float32)
        visible[spots] = 0.0
        return replace(self, around=self.around @ sparse.diags(visible), slide=self.slide @ sparse.diags(visible))

    def field(self, shrinkage: np.ndarray, spots: Rows = EVERY_SPOT) -> np.ndarray:
        """Factor or summand of every entry, (n_obs, n_genes), from the shrinkage c of slides and of surroundings, (2,).

        Where only some spots are asked about, those of others are of no effect.
        """
        field = np.full_like(self.found, 1.0 if self.rates else 0.0)
        for genes in self.blocks():
            of_slide = self.posterior_mean(self.over_slides(genes, spots), shrinkage[0])
            around = self.posterior_mean(self.around_spots(genes, of_slide, spots), shrinkage[1])
            field[spots, genes] = self.applied(of_slide, around)
        return field

    def blocks(self) -> Iterator[slice]:
        """Go through the genes, as many at a time as are well held."""
        for start in range(0, self.found.shape[1], _GENES_AT_A_TIME):
            yield slice(start, start + _GENES_AT_A_TIME)

    def over_slides(self, genes: slice, spots: Rows = EVERY_SPOT) -> Sums:
        """What is found and expected of some genes in all other spots of the slides of some spots, (n_spots, n) each."""
        slides = self.slide.T.tocsr()[spots]
        return tuple(
            slides @ (self.slide @ part[:, genes]) - part[spots, genes] for part in (self.found, self.expected)
        )

    def around_spots(self, genes: slice, of_slide: np.ndarray, spots: Rows = EVERY_SPOT) -> Sums:
        """The same around these spots, beside the factor or summand of their slides, (n_spots, n)."""
        around = self.around[spots]
        found, expected = around @ self.found[:, genes], around @ self.expected[:, genes]
        if self.rates:
            return found, expected * of_slide
        return found - expected * of_slide, expected

    def posterior_mean(self, sums: Sums, shrinkage: float) -> np.ndarray:
        """Factor or summand of which sums tell."""
        found, expected = sums
        if np.isinf(shrinkage):
            return np.full_like(found, 1.0 if self.rates else 0.0)
        return (found + (shrinkage if self.rates else 0.0)) / (expected + shrinkage)

    def applied(self, value: np.ndarray, stray: np.ndarray) -> np.ndarray:
        """A rate or value, or its factor or summand so far, with a further factor or summand."""
        return value * stray if self.rates else value + stray


@dataclass
class Asked:
    """Entries that training set aside, (n_entries,) each, and how predictions of them are judged.

    Attributes
    ----------
    rows, genes
        Where they are.
    predicted
        Without factors or summands.
    loss
        Function of predictions and of which entries they are, bool, (n_entries,): the sum of their losses.
    """

    rows: np.ndarray
    genes: np.ndarray
    predicted: np.ndarray
    loss: Callable[[np.ndarray, np.ndarray], float]


def choose_shrinkage(strays: Strays, asked: Asked) -> np.ndarray:
    """Shrinkage of slides, and after that of surroundings, that predicts set-aside entries best, (2,)."""
    chosen: list[float] = []
    for _ in range(2):
        losses = np.zeros(len(_SHRINKAGES))
        for genes in strays.blocks():
            here = (asked.genes >= genes.start) & (asked.genes < genes.stop)
            place = asked.rows[here], asked.genes[here] - genes.start
            predicted, sums = asked.predicted[here], strays.over_slides(genes)
            if chosen:
                of_slide = strays.posterior_mean(sums, chosen[0])
                predicted, sums = strays.applied(predicted, of_slide[place]), strays.around_spots(genes, of_slide)
            there = tuple(part[place] for part in sums)
            losses += [
                asked.loss(strays.applied(predicted, strays.posterior_mean(there, shrinkage)), here)
                for shrinkage in _SHRINKAGES
            ]
        chosen.append(_SHRINKAGES[int(losses.argmin())])
    return np.array(chosen)


class _Regional(NamedTuple):
    """Regional deviations, (n_obs, n_genes) or none, and of which data, with what hidden."""

    hide: str
    fingerprint: str
    field: np.ndarray | None


class RegionMixin(BatchMixin):
    """Regional deviations of :class:`~lgdist_scvi.LGDiST`."""

    _regional: _Regional | None = None  # of the last question, for users ask again and again

    def _fit_regions(self) -> Strays | None:
        """Learn on what training set aside how much to make of regional deviations, and apply those that do not know it."""
        vae, manager = self.module.vae, self.adata_manager
        self._regional = manager.regional = None
        vae.regional_shrinkage.fill_(np.inf)
        if not (vae.has_experts and self.module.own_entries):
            return None
        strays, asked = self._strays(self.adata, "set_aside")
        vae.regional_shrinkage.copy_(torch.from_numpy(choose_shrinkage(strays, asked)))
        self._apply_strays(strays)
        fingerprint = data_fingerprint(self.adata_manager.create_torch_dataset())
        self._regional = _Regional("set_aside", fingerprint, self.adata_manager.regional)
        return strays

    def _apply_strays(self, strays: Strays, spots: Rows = EVERY_SPOT) -> None:
        """Let predictions of these spots know of regional deviations."""
        shrinkage = self.module.vae.regional_shrinkage.cpu().numpy()
        self.adata_manager.regional = None if np.isinf(shrinkage).all() else strays.field(shrinkage, spots)

    def _apply_regions(self, adata: AnnData, hide: Literal["nothing", "set_aside"] = "nothing") -> None:
        """Find regional deviations from all that is observed, or from what training did not set aside."""
        manager, shrinkage = self.get_anndata_manager(adata, required=True), self.module.vae.regional_shrinkage
        manager.regional = None
        if torch.isinf(shrinkage).all():
            return
        of = (hide, data_fingerprint(manager.create_torch_dataset()))
        if self._regional is None or self._regional[:2] != of:
            strays, _ = self._strays(adata, hide)
            self._regional = _Regional(*of, strays.field(shrinkage.cpu().numpy()))
        manager.regional = self._regional.field

    @torch.inference_mode()
    def _strays(self, adata: AnnData, hide: Literal["nothing", "set_aside"]) -> tuple[Strays, Asked]:
        """What is visible of all spots against what is expected, and the set-aside entries of those not set aside whole."""
        module, vae = self.module, self.module.vae
        dataset = self.get_anndata_manager(adata, required=True).create_torch_dataset()
        found, expected = np.zeros((2, adata.n_obs, len(vae.gene_rate)), dtype=np.float32)
        whole = np.zeros(adata.n_obs, dtype=bool)
        if hide == "set_aside":
            whole[module.spots_set_aside(adata.n_obs)] = True
        parts = []
        for place, tensors, _ in self._batches(adata, np.arange(adata.n_obs), dataset=dataset):
            inputs = module._get_inference_input(tensors, hide)
            centre = inputs["centre"]
            condition = vae.encode(centre, module.around(inputs))
            shared = vae.shared(module.latent_mean(condition), condition)
            if vae.counts_are_modelled:
                counts, library = condition.own
                found[place], expected[place] = counts.cpu().numpy(), (library * shared).cpu().numpy()
            else:
                above = vae.measured(centre, vae.visible_library(centre)) - self._in_units(shared, tensors, "captured")
                found[place], expected[place] = (above * centre.visible).cpu().numpy(), centre.visible.cpu().numpy()
            rows, genes = ((inputs["score"] > 0).cpu().numpy() & ~whole[place, None]).nonzero()
            exposure = module.fitted_exposure(tensors, inputs).expand_as(shared)
            entries = (shared, inputs["target"], exposure)
            parts.append((place[rows], genes, *(entry.cpu().numpy()[rows, genes] for entry in entries)))
        rows, genes, predicted, target, exposure = map(np.concatenate, zip(*parts, strict=True))

        def loss(prediction: np.ndarray, which: np.ndarray) -> float:
            given = (torch.from_numpy(part) for part in (prediction, target[which], exposure[which]))
            return float(vae.error(*(part.to(vae.gene_rate) for part in given)).double().sum())

        n_slides, here = dataset.samples.max() + 1, np.arange(adata.n_obs)
        slide = sparse.csr_matrix(
            (np.ones(adata.n_obs, dtype=np.float32), (dataset.samples, here)), shape=(n_slides, adata.n_obs)
        )
        around = surroundings(dataset.graph, dataset.coordinates)
        return Strays(found, expected, around, slide, vae.counts_are_modelled), Asked(rows, genes, predicted, loss)
