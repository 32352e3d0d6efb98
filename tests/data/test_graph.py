from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from lgdist_scvi import datasets, pp
from lgdist_scvi.data import Surroundings, reach_further


def two_pieces(rng, n=40):
    """Spots of two pieces of tissue that lie on the same coordinates; neighbours within a piece follow each other."""
    coordinates = np.tile(rng.random((n, 2)), (2, 1))
    chain = np.arange(n - 1)
    rows = np.concatenate([chain, chain + n])
    graph = sparse.csr_matrix((np.ones(len(rows)), (rows, rows + 1)), shape=(2 * n, 2 * n))
    return graph + graph.T, coordinates


def test_the_nearest_spots_of_the_same_piece():
    graph, coordinates = two_pieces(np.random.default_rng(0))
    weights = Surroundings(graph, coordinates, n_around=7)[np.arange(80)].toarray()
    assert weights[:40, 40:].sum() == weights[40:, :40].sum() == 0
    distances = cdist(coordinates[:40], coordinates[:40])
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, :7]
    expected = np.where(distances <= nearest[:, -1:], np.exp(-0.5 * (distances / (nearest[:, -1:] / 2)) ** 2), 0.0)
    np.testing.assert_allclose(weights[:40, :40], expected, rtol=1e-5)
    np.testing.assert_allclose(weights[40:, 40:], expected, rtol=1e-5)


def test_no_spot_counts_for_itself_even_where_spots_coincide():
    graph, coordinates = two_pieces(np.random.default_rng(1))
    coordinates[:] = coordinates[0]
    weights = Surroundings(graph, coordinates, n_around=100)[np.arange(80)]
    assert weights.diagonal().sum() == 0
    # all others of the piece, and nothing of the other one
    np.testing.assert_array_equal(np.diff(weights.indptr), 39)
    np.testing.assert_array_equal(weights.data, 1.0)


def test_without_edges_there_are_no_surroundings():
    coordinates = np.random.default_rng(2).random((9, 2))
    assert Surroundings(sparse.csr_matrix((9, 9)), coordinates)[np.arange(9)].nnz == 0


@pytest.mark.parametrize("n_around", [10, 20, 36, 168])
def test_it_does_not_depend_on_the_order_of_spots(n_around):
    """On a grid many spots lie at one distance: all of them are among the surroundings, or none."""
    rng = np.random.default_rng(0)
    coordinates = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), axis=-1).reshape(-1, 2) * 137.3
    graph = sparse.csr_matrix(cdist(coordinates, coordinates) < 140.0, dtype=np.float32)
    order = rng.permutation(len(coordinates))
    weights = Surroundings(graph, coordinates, n_around)[np.arange(256)].toarray()
    shuffled = Surroundings(graph[order][:, order], coordinates[order], n_around)[np.arange(256)].toarray()
    np.testing.assert_allclose(shuffled, weights[np.ix_(order, order)], rtol=1e-5)
    assert (weights > 0).sum(1).max() <= n_around


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_spots_in_holes_reach_the_first_ring_of_the_graph_that_is_visible(share):
    rng = np.random.default_rng(0)
    adata = datasets.simulated_visium(n_spots=300, n_genes=20, seed=0)
    pp.spatial_neighbors(adata)
    graph, has_content = adata.obsp["spatial_connectivities"].tocsr(), rng.random(300) < share
    n_visible = (graph > 0).astype(int) @ has_content.astype(int)
    spots = np.flatnonzero((n_visible == 0) & (np.diff(graph.indptr) > 0))
    steps = sparse.csgraph.shortest_path(graph, unweighted=True)
    np.fill_diagonal(steps, np.inf)
    steps[:, ~has_content] = np.inf
    nearest = (steps == steps.min(axis=1, keepdims=True)) & np.isfinite(steps)
    expected = {(spot, other) for spot in spots for other in np.flatnonzero(nearest[spot])}
    reached = reach_further(graph, spots, has_content)
    assert {tuple(pair) for pair in reached.to_numpy()} == expected
    assert len(reached) == len(expected)
