"""Patches around spots in torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch

from lgdist_scvi import _keys as keys
from lgdist_scvi.module._spots import Spots, sum_of_neighbors


@dataclass(kw_only=True)
class Patches(Spots):
    """Spots of which the image is visible, and no count.

    Attributes
    ----------
    image
        Components of the features, (n, n_components), 0 where there is no image.
    present
        1 where there is an image, (n, 1).
    fold
        Part of the training data that a spot belongs to, whose networks had no part of it, (n,); ``None`` of other data.
    """

    image: torch.Tensor
    present: torch.Tensor
    fold: torch.Tensor | None = None


@dataclass
class PatchInputs:
    """One batch in one pass; see :class:`~lgdist_scvi.module._spots.Inputs`."""

    centre: Patches
    neighbors: Patches
    index: torch.Tensor
    distance: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, batch: dict[str, torch.Tensor]) -> PatchInputs:
        """What is visible of a batch."""
        fold = batch[keys.FOLD].flatten().long() if keys.FOLD in batch else None
        index, valid = batch[keys.NEIGHBOR_INDEX].long(), batch[keys.NEIGHBOR_VALID].bool()
        return cls(
            centre=_patches(batch[keys.COUNTS], batch[keys.LIBRARY], batch[keys.IMAGE], fold),
            neighbors=_patches(batch[keys.NEIGHBOR_COUNTS], batch[keys.NEIGHBOR_LIBRARY], batch[keys.NEIGHBOR_IMAGE]),
            index=index,
            distance=batch[keys.NEIGHBOR_DISTANCE],
            valid=valid,
        )


def _patches(
    counts: torch.Tensor, library: torch.Tensor, image: torch.Tensor, fold: torch.Tensor | None = None
) -> Patches:
    present = torch.isfinite(image).all(dim=1, keepdim=True)
    return Patches(
        counts,
        torch.zeros_like(counts),
        library,
        image=torch.where(present, image, 0.0),
        present=present.float(),
        fold=fold,
    )


def mean_of_neighbors(values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over the neighbours of each centre, 0 without any, (batch, n_columns)."""
    return sum_of_neighbors(values, index, valid) / valid.sum(dim=1, keepdim=True).clamp(min=1)


@dataclass
class TrainingPatches:
    """What experts learn from.

    Attributes
    ----------
    spots
        All spots of the training, with their raw counts.
    around
        Mean of the components of the neighbours, (n, n_components).
    observed
        1 where an entry is observed, (n, n_genes).
    rate, latent
        Rates to learn, (n, n_genes), and their latents, (n, n_latent).
    synthetic
        Components of patches that were generated for the spots, (n, n_patches, n_components), NaN where there is none; ``None``
        without any.
    synthetic_weight
        Weight of all generated patches of a spot together, in relation to its own patch.
    """

    spots: Patches
    around: torch.Tensor
    observed: torch.Tensor
    rate: torch.Tensor
    latent: torch.Tensor
    synthetic: torch.Tensor | None = None
    synthetic_weight: float = 0.0

    @classmethod
    def of(cls, batches: Iterable[dict[str, torch.Tensor]], synthetic_weight: float = 0.0) -> Self:
        """Join batches of spots."""
        parts = []
        for batch in batches:
            inputs = PatchInputs.of(batch)
            around = mean_of_neighbors(inputs.neighbors.image, inputs.index, inputs.valid)
            latent = batch[keys.TARGET_LATENT].mean(1)
            parts.append(
                (inputs.centre, around, batch[keys.MASK], batch[keys.TARGET_RATE], latent, batch.get(keys.SYNTHETIC))
            )
        centres, around, observed, rate, latent, synthetic = zip(*parts, strict=True)
        names = ("counts", "visible", "library", "image", "present", "fold")
        joined = replace(centres[0], **{name: torch.cat([getattr(one, name) for one in centres]) for name in names})
        generated = None if synthetic[0] is None else torch.cat(synthetic)
        parts = map(torch.cat, (around, observed, rate, latent))
        return cls(joined, *parts, synthetic=generated, synthetic_weight=synthetic_weight)


def with_synthetic(batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The batch with a generated patch, drawn at random, in the place of each spot's own, and the share of spots that have one.

    Of spots that have none nothing is scored.
    """
    there = torch.isfinite(batch[keys.SYNTHETIC]).all(2)  # (batch, n_patches)
    has = there.any(1, keepdim=True)
    drawn = torch.multinomial(torch.where(has, there, True).float(), 1)[:, 0]
    image = batch[keys.SYNTHETIC][torch.arange(len(drawn), device=drawn.device), drawn]
    return batch | {keys.IMAGE: image, keys.MASK: batch[keys.MASK] * has}, has.float().mean()


def on_device(batches: Iterable[dict[str, torch.Tensor]], device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """The batches, one after the other, where a module is."""
    return ({key: value.to(device) for key, value in batch.items()} for batch in batches)
