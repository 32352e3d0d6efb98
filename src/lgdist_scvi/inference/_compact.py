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


def compact_parts(coordinates: np.ndarray, samples: np.ndarray, size: int) -> list[np.ndarray]:
    """Positions of spots in parts of at most `size`, each of them a compact part of a slide, or several whole ends of slides.

    The spots of a slide are halved along their longer extent until a part has at most `size`; within a part they keep
    their order.
    """
    parts: list[np.ndarray] = []
    for sample in np.unique(samples):
        left = [np.flatnonzero(samples == sample)]
        while left:
            part = left.pop()
            n_parts = -(-len(part) // size)
            if n_parts > 1:
                longest = np.ptp(coordinates[part], axis=0).argmax()
                part = part[np.argsort(coordinates[part, longest], kind="stable")]
                middle = (n_parts + 1) // 2 * size
                left += [part[middle:], part[:middle]]
            elif parts and len(parts[-1]) + len(part) <= size:
                parts[-1] = np.sort(np.concatenate([parts[-1], part]))
            else:
                parts.append(np.sort(part))
    return parts
