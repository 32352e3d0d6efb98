"""Image features as a network sees them: standardised, on their principal axes."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import nn

_PRIOR_SPOTS = 20.0  # of the training's mean and variance in those of a slide


class ImageComponents(nn.Module):
    """Principal components of standardised image features.

    Stains and scanners differ from slide to slide by more than tissues do within one: features are standardised on each slide,
    by its own mean and standard deviation, unless `per_slide` is False.

    Parameters
    ----------
    n_features, n_components
        Number of features, and of components.
    per_slide
        Whether a slide's own statistics standardise it.
    """

    def __init__(self, n_features: int, n_components: int, per_slide: bool = True):
        super().__init__()
        self.per_slide = per_slide
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("axes", torch.zeros(n_features, n_components))

    @torch.no_grad()
    def fit(self, features: np.ndarray, samples: np.ndarray) -> None:
        """Learn from training spots; arguments as in :meth:`transform`."""
        pictured = np.isfinite(features).all(axis=1)
        known = features[pictured].astype(np.float64)
        self.mean.copy_(torch.from_numpy(known.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(_scale(known.var(axis=0))))
        standardised = self._standardised(features, samples)[pictured]
        rank = min(self.axes.shape[1], *standardised.shape)
        _, singular, axes = randomized_svd(standardised, rank, n_iter=4, random_state=0)
        # one scale for all components: the first ones tell most
        typical = singular.mean() / np.sqrt(len(standardised))
        self.axes.zero_()
        self.axes[:, :rank] = torch.from_numpy((axes / max(typical, 1e-12)).T.astype(np.float32))

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
                here = (here - centre) / _scale(prior * scale**2 + (1.0 - prior) * own_variance)
            else:
                here = (here - mean) / scale
            out[spots] = here
        return out


def _scale(variance: np.ndarray) -> np.ndarray:
    """Standard deviation, 1 of features that are constant."""
    return np.where(variance > 1e-12, np.sqrt(variance), 1.0)
