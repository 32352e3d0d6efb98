"""Neighbours, rings, pitch and surroundings of spots."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_PATCH = 1024  # spots
N_AROUND = 168  # spots, seven rings of a hexagonal grid
_EDGES = 1 << 20  # measured in one go
_SAME = 1e-6  # relative difference of distances that are the same


class Surroundings:
    """Weights of the `n_around` nearest spots of the same piece of tissue, falling with the distance.

    Pieces are connected components of the graph. Weights are Gaussian, with half the distance of the last of these
    spots as standard deviation. None of a spot for itself. Of spots at one distance, as on a grid, there are all or
    none. They are found when they are asked for: those of a million spots take a gigabyte.
    """

    def __init__(self, graph: sparse.csr_matrix, coordinates: np.ndarray, n_around: int = N_AROUND):
        _, piece = connected_components(graph, directed=False)
        self.n_around = min(n_around, int(np.bincount(piece, minlength=1).max()) - 1)
        # a further dimension holds the pieces far apart
        self.extent = 1.0 + np.ptp(coordinates, axis=0).sum()
        self.tree = cKDTree(np.column_stack([coordinates, 2.0 * self.extent * piece]))

    def __len__(self) -> int:
        return self.tree.n

    def __getitem__(self, spots: np.ndarray) -> sparse.csr_matrix:
        """Weights of the surroundings of some spots, given by their rows, (n_spots, n_obs)."""
        shape = len(spots), self.tree.n
        if self.n_around < 1:
            return sparse.csr_matrix(shape, dtype=np.float32)
        distance, other = self.tree.query(self.tree.data[spots], self.n_around + 2, distance_upper_bound=self.extent)
        # spots as far as the first one beyond are left out with it: which come first would depend on the order of rows
        found = (distance < (1.0 - _SAME) * distance[:, -1:]) & (other != np.asarray(spots)[:, None])
        farthest = np.where(found, distance, 0.0).max(axis=1, keepdims=True, initial=0.0)
        weights = np.exp(-2.0 * (distance / np.maximum(farthest, 1e-12)) ** 2, where=found, out=np.zeros_like(distance))
        return sparse.csr_matrix((weights[found].astype(np.float32), (np.nonzero(found)[0], other[found])), shape=shape)


def distances(coordinates: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance between pairs of spots, given by their rows, float64, (n_pairs,)."""
    starts = range(0, max(1, len(one)), _EDGES)
    parts = (coordinates[one[s : s + _EDGES]] - coordinates[other[s : s + _EDGES]] for s in starts)
    return np.concatenate([np.linalg.norm(part, axis=1) for part in parts])


def spot_pitch(rows: np.ndarray, lengths: np.ndarray, samples: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Distance between neighbouring spots of each slide: the median over spots of the nearest neighbour's, (n_slides,).

    `rows` and `lengths` are those of the graph's edges; on a slide without edges the nearest spot is the neighbour.
    """
    nearest = pd.Series(lengths).groupby(rows).min()
    medians = nearest.groupby(samples[nearest.index]).median()
    pitch = np.ones(samples.max(initial=0) + 1)
    pitch[medians.index] = medians.to_numpy()
    for sample in np.setdiff1d(samples, medians.index):
        spots = coordinates[samples == sample]
        if len(spots) > 1:
            pitch[sample] = np.median(cKDTree(spots).query(spots, [2])[0])
    return pitch


def reach_further(graph: sparse.csr_matrix, spots: np.ndarray, has_content: np.ndarray) -> pd.DataFrame:
    """Walk the graph from spots without useful neighbours to the first ring that has some."""
    parts = [_walk(graph, spots[has_content[spots]], has_content)]
    known, asking = has_content.copy(), np.isin(np.arange(len(has_content)), spots)
    found = useful = np.flatnonzero(has_content)
    while len(found) and (asking & ~known).any():
        # what is nearest to neighbours that are one step less away
        reached = sparse.csr_matrix((np.ones(len(found), dtype=bool), (found, useful)), shape=graph.shape)
        found, useful = (graph.astype(bool) @ reached).nonzero()
        found, useful = found[~known[found]], useful[~known[found]]
        known[found] = True
        parts.append(pd.DataFrame({"spot": found, "neighbor": useful})[asking[found]])
    return pd.concat(parts).astype(np.int64)


def _walk(graph: sparse.csr_matrix, spots: np.ndarray, has_content: np.ndarray) -> pd.DataFrame:
    """The same, spot by spot: for spots that have content themselves, which others cannot walk through."""
    found_spots, found = [], []
    for spot in spots:
        seen = {int(spot)}
        ring = set(graph.indices[graph.indptr[spot] : graph.indptr[spot + 1]].tolist())
        while ring:
            useful = [other for other in ring if has_content[other]]
            if useful:
                found += useful
                found_spots += [spot] * len(useful)
                break
            seen |= ring
            ring = {
                int(n) for other in ring for n in graph.indices[graph.indptr[other] : graph.indptr[other + 1]]
            } - seen
    return pd.DataFrame(
        {"spot": np.asarray(found_spots, dtype=np.int64), "neighbor": np.asarray(found, dtype=np.int64)}
    )


def nearest(
    coordinates: np.ndarray, samples: np.ndarray, spots: np.ndarray, has_content: np.ndarray, n: int
) -> pd.DataFrame:
    """Join spots to the `n` nearest of their slide that have content."""
    found = [pd.DataFrame({"spot": [], "neighbor": []}, dtype=np.int64)]
    for sample in np.unique(samples[spots]):
        asking = spots[samples[spots] == sample]
        useful = np.flatnonzero(has_content & (samples == sample))
        if len(useful):
            rank = np.arange(1, min(n, len(useful)) + 1)
            _, place = cKDTree(coordinates[useful]).query(coordinates[asking], rank)
            found.append(pd.DataFrame({"spot": np.repeat(asking, len(rank)), "neighbor": useful[place].ravel()}))
    return pd.concat(found)


def drawn_patches(coordinates: np.ndarray, samples: np.ndarray, n: int, n_first: int) -> np.ndarray:
    """Rows of about `n` spots in compact patches drawn at random, always the same; patch after patch, one of each slide first.

    A slide is cut into strips of as many spots each, and every strip into patches, of about 1,024 spots, or fewer of many slides:
    one of each is among the first `n_first` spots.
    """
    rng, patches, slides = np.random.default_rng(0), [], np.unique(samples)
    size = max(1, min(_PATCH, n_first // len(slides)))
    for sample in slides:
        spots = np.flatnonzero(samples == sample)
        n_patches = -(-len(spots) // size)
        n_strips = max(1, round(np.sqrt(n_patches)))
        across, along = np.argsort(np.ptp(coordinates[spots], axis=0), kind="stable")[::-1][:2]
        for strip in np.array_split(spots[np.argsort(coordinates[spots, across], kind="stable")], n_strips):
            order = strip[np.argsort(coordinates[strip, along], kind="stable")]
            patches += [(sample, np.sort(patch)) for patch in np.array_split(order, -(-n_patches // n_strips))]
    drawn = [patches[place] for place in rng.permutation(len(patches))]
    first = {sample: place for place, (sample, _) in reversed(list(enumerate(drawn)))}
    order = [*first.values(), *sorted(set(range(len(drawn))) - set(first.values()))]
    return np.concatenate([drawn[place][1] for place in order])[:n]
