"""Image features as a network sees them: standardised, on their principal axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import nn

_PRIOR_SPOTS = 1.0  # of the training's mean and variance in those of a slide: what is left of a stain misleads
_SIZE = 2.0  # of a component, root mean square: networks that start from small ones learn little in their time


class ImageComponents(nn.Module):
    """Principal components of standardised image features.

    Stains and scanners differ from slide to slide by more than tissues do within one: features are standardised on each slide,
    unless `per_slide` is False: by its own mean, and by the geometric mean of its own standard deviation and the usual one within a
    slide, for a slide's own is of its stain as well as of the mixture of tissues on it.

    Parameters
    ----------
    blocks
        Number of features of each encoder, side by side.
    n_components
        Number of components of each encoder, at most.
    per_slide
        Whether a slide's own statistics standardise it.
    """

    def __init__(self, blocks: Sequence[int], n_components: int, per_slide: bool = True):
        super().__init__()
        self.per_slide, self.blocks = per_slide, tuple(blocks)
        self.ranks = tuple(min(n_components, size) for size in self.blocks)
        self.n_components, n_features = sum(self.ranks), sum(self.blocks)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("axes", torch.zeros(n_features, self.n_components))

    @torch.no_grad()
    def fit(self, features: np.ndarray, samples: np.ndarray) -> None:
        """Learn from training spots; arguments as in :meth:`transform`."""
        pictured = np.isfinite(features).all(axis=1)
        known, slides = (
            features[pictured].astype(np.float64),
            samples[pictured] if self.per_slide else np.zeros(pictured.sum()),
        )
        self.mean.copy_(torch.from_numpy(known.mean(axis=0)))
        within = [known[slides == slide].var(axis=0) * (slides == slide).mean() for slide in np.unique(slides)]
        self.scale.copy_(torch.from_numpy(_scale(np.sum(within, axis=0))))
        standardised = self._standardised(features, samples)[pictured]
        self.axes.zero_()
        starts = zip(np.cumsum((0, *self.blocks)), np.cumsum((0, *self.ranks)), strict=True)
        for (row, column), size, rank in zip(starts, self.blocks, self.ranks, strict=False):
            block = standardised[:, row : row + size]
            known_rank = min(rank, *block.shape)
            _, singular, axes = randomized_svd(block, known_rank, n_iter=4, random_state=0)
            # the first components of many features tell most; a few features are statistics, each of which tells something
            weight = (
                np.ones(known_rank) if size > rank else 1.0 / np.sqrt(np.maximum(singular, 1e-6 * singular[0] + 1e-12))
            )
            # all encoders count alike
            total = np.sqrt(((singular * weight) ** 2).sum() / len(block))
            scale = weight * _SIZE * np.sqrt(self.ranks[0]) / max(total, 1e-12)
            self.axes[row : row + size, column : column + known_rank] = torch.from_numpy(
                (axes * scale[:, None]).T.astype(np.float32)
            )

    def transform(self, features: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Components, float32, (n_obs, n_components), NaN where there is no image.

        Parameters
        ----------
        features
            (n_obs, n_features), rows of NaN where there is no image.
        samples
            Slide of each spot, 0, 1, ..., (n_obs,).
        """
        return self._standardised(features, samples) @ self.axes.cpu().numpy()

    def _standardised(self, features: np.ndarray, samples: np.ndarray) -> np.ndarray:
        mean, scale = self.mean.cpu().numpy(), self.scale.cpu().numpy()
        out = np.empty(features.shape, dtype=np.float32)
        for slide in np.unique(samples):
            spots = np.flatnonzero(samples == slide)
            here = features[spots].astype(np.float32)
            if self.per_slide:
                known = here[np.isfinite(here).all(axis=1)].astype(np.float64)
                n = len(known)
                prior = _PRIOR_SPOTS / (n + _PRIOR_SPOTS)
                own_mean, own_variance = (known.mean(axis=0), known.var(axis=0)) if n else (mean, scale**2)
                centre = prior * mean + (1.0 - prior) * own_mean
                own_scale = _scale(prior * scale**2 + (1.0 - prior) * own_variance)
                here = (here - centre) / np.sqrt(scale * own_scale)
            else:
                here = (here - mean) / scale
            out[spots] = here
        return out


def _scale(variance: np.ndarray) -> np.ndarray:
    """Standard deviation, 1 of features that are constant."""
    return np.where(variance > 1e-12, np.sqrt(variance), 1.0)
