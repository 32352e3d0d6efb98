"""Holes in a slide: spots hidden with their surroundings, to measure predictions where no neighbour is visible."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

_RINGS = (1, 2, 3)  # hidden around the middle of a hole
_HIDDEN = 0.3  # share of the spots that is hidden at a time, about
_LEFT_ON_SLIDE = 0.5  # share of what is visible of a slide
_MAX_TURNS = 5  # for each size of hole


def holes(
    graph: sparse.csr_matrix, spots: np.ndarray, samples: np.ndarray, has_content: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Dig holes around spots, as many at a time as leave most of every slide visible.

    `spots` are rows of the spots in the middle of holes, in the order in which they come; `samples` is the slide of
    each spot, and `has_content` whether anything is observed of it, (n_obs,).

    Yields
    ------
    Rows of the spots in the middle of some holes, and of the spots to hide around them. A spot is in the middle of one
    hole at most: of one ring, two, or three.
    """
    n_obs = len(samples)
    step = (graph + sparse.identity(n_obs, format="csr")).astype(bool).tocsr()
    visible = np.bincount(samples[has_content], minlength=samples.max(initial=0) + 1)
    for n_rings, left in zip(_RINGS, map(list, np.array_split(spots, len(_RINGS))), strict=True):
        for _ in range(_MAX_TURNS):
            middles, later = [], []
            hidden, beside_middle = np.zeros((2, n_obs), dtype=bool)
            while left and (not middles or hidden.mean() < _HIDDEN):
                spot = left.pop(0)
                if beside_middle[spot]:  # it would be a visible neighbour
                    later.append(spot)
                    continue
                around = step[[spot]]
                for _ in range(n_rings - 1):
                    around = around @ step
                with_it = hidden.copy()
                with_it[around.indices] = True
                left_on_slide = (has_content & ~with_it & (samples == samples[spot])).sum()
                if left_on_slide >= _LEFT_ON_SLIDE * visible[samples[spot]]:
                    middles.append(spot)
                    hidden = with_it
                    beside_middle[step[[spot]].indices] = True
            left = later + left
            if middles:
                hidden[middles] = False
                yield np.array(middles), np.flatnonzero(hidden)
