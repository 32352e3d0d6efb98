"""What fits in memory as a dense array, and compact parts of slides for what does not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MAX_ENTRIES = 2**24  # of a dense array of spots and genes; larger data are gone through in parts
_ENTRIES_AT_A_TIME = 2**23


def fits_in_memory(n_obs: int, n_genes: int) -> bool:
    """Whether dense arrays of all spots and genes may be kept."""
    return n_obs * n_genes <= MAX_ENTRIES


def spots_at_a_time(n_genes: int) -> int:
    """Number of spots whose dense arrays are held while they are worked on: 8,192 of 1,024 genes, at least 256."""
    return max(256, _ENTRIES_AT_A_TIME // n_genes)


def runs(n_obs: int, size: int) -> Iterator[np.ndarray]:
    """Rows of all spots in runs of `size`: what lies together in a file is read together."""
    for start in range(0, n_obs, size):
        yield np.arange(start, min(start + size, n_obs))


def compact_order(coordinates: np.ndarray, samples: np.ndarray, size: int) -> np.ndarray:
    """Positions of spots, (n,), in an order in which every `size` of them are a compact part of one slide.

    The spots are halved along their longer extent until each part has at most `size`; within a part they keep their
    order.
    """
    if not len(samples):
        return np.arange(0)
    apart = 1.0 + np.ptp(coordinates, axis=0).sum()
    places = np.column_stack([coordinates, apart * samples])
    done, left = [], [np.arange(len(samples))]
    while left:
        part = left.pop()
        n_parts = -(-len(part) // size)
        if n_parts == 1:
            done.append(np.sort(part))
            continue
        longest = np.ptp(places[part], axis=0).argmax()
        part = part[np.argsort(places[part, longest], kind="stable")]
        middle = (n_parts + 1) // 2 * size
        left += [part[middle:], part[:middle]]
    return np.concatenate(done)
