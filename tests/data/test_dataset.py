"""The neighbourhood data set: exact neighbours, gathered by index, in any format."""

from __future__ import annotations

import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi import _keys as keys
from lgdist_scvi.data import NeighborhoodDataset, NeighborhoodManager

FORMATS = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": lambda x: x.toarray(),
    "dense, Fortran order": lambda x: np.asfortranarray(x.toarray()),
    "integers": lambda x: x.astype(np.int32),
    "dense integers": lambda x: x.toarray().astype(np.uint8),
    "float64": lambda x: x.astype(np.float64),
}


def dataset_of(adata: ad.AnnData, **setup) -> NeighborhoodDataset:
    LGDiST.setup_anndata(adata, **setup)
    manager = LGDiST._get_most_recent_anndata_manager(adata, required=True)
    assert isinstance(manager, NeighborhoodManager)
    return manager.create_torch_dataset()


def neighbor_sets(batch: dict) -> list[set[int]]:
    """Rows of the neighbours of each spot of a batch."""
    rows = batch[keys.NEIGHBOR_SPOT].ravel()[batch[keys.NEIGHBOR_INDEX]]
    return [set(row[valid].tolist()) for row, valid in zip(rows, batch[keys.NEIGHBOR_VALID], strict=True)]


def assert_same_batch(first: dict, second: dict) -> None:
    assert set(first) == set(second)
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)
        assert value.dtype == second[key].dtype, key


def chain(counts: np.ndarray) -> ad.AnnData:
    """Spots in a row, each connected with the next."""
    n = len(counts)
    adata = ad.AnnData(np.asarray(counts, dtype=np.float32))
    adata.obsm["spatial"] = np.column_stack([10.0 * np.arange(n), np.zeros(n)])
    adata.obsp["spatial_connectivities"] = sparse.diags([np.ones(n - 1), np.ones(n - 1)], [-1, 1], format="csr")
    return adata


def test_neighbours_are_the_nearest_spots_of_the_slide():
    adata = datasets.simulated_visium(n_spots=150, n_genes=10, n_samples=2, seed=0)
    batch = dataset_of(adata, sample_key="sample")[np.arange(150)]
    distances = cdist(adata.obsm["spatial"], adata.obsm["spatial"])
    samples = adata.obs["sample"].to_numpy()
    distances[samples[:, None] != samples[None]] = np.inf
    np.fill_diagonal(distances, np.inf)
    pitch = distances.min()
    assert neighbor_sets(batch) == [set(np.flatnonzero(row < 1.2 * pitch).tolist()) for row in distances]
    # and their distance is given in pitches
    rows = batch[keys.NEIGHBOR_SPOT].ravel()[batch[keys.NEIGHBOR_INDEX]]
    valid = batch[keys.NEIGHBOR_VALID]
    expected = distances[np.arange(150)[:, None], rows] / pitch
    np.testing.assert_allclose(batch[keys.NEIGHBOR_DISTANCE][valid], expected[valid], rtol=1e-5)


def test_neighbours_follow_any_graph():
    """Also one that is not symmetric: row i holds the neighbours of spot i."""
    rng = np.random.default_rng(0)
    adata = datasets.simulated_visium(n_spots=50, n_genes=10, seed=0)
    graph = rng.random((50, 50)) < 0.1
    np.fill_diagonal(graph, False)
    adata.obsp["mine"] = sparse.csr_matrix(graph.astype(float))
    assert (graph != graph.T).any()
    batch = dataset_of(adata, graph_key="mine")[np.arange(50)]
    assert neighbor_sets(batch) == [set(np.flatnonzero(row).tolist()) for row in graph]


def test_stored_zeros_are_no_edges():
    adata = chain(np.ones((4, 3)))
    graph = adata.obsp["spatial_connectivities"].copy()
    graph.data[0] = 0
    adata.obsp["spatial_connectivities"] = graph
    assert neighbor_sets(dataset_of(adata)[np.arange(4)])[0] == set()


def test_a_batch_holds_the_rows_of_its_spots_and_of_their_neighbours():
    adata = datasets.simulated_visium(n_spots=80, n_genes=15, seed=0)
    adata.layers["known"] = np.random.default_rng(0).random(adata.shape) > 0.3
    dataset = dataset_of(adata, mask_layer="known")
    spots = np.array([40, 3, 3, 77])
    batch = dataset[spots]
    known = adata.layers["known"].astype(np.float32)
    visible = adata.X.toarray() * known
    library = visible.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(batch[keys.SPOT].ravel(), spots)
    np.testing.assert_array_equal(batch[keys.COUNTS], visible[spots])
    np.testing.assert_array_equal(batch[keys.MASK], known[spots])
    np.testing.assert_array_equal(batch[keys.LIBRARY], library[spots])
    unique = batch[keys.NEIGHBOR_SPOT].ravel()
    assert len(set(unique)) == len(unique)
    np.testing.assert_array_equal(batch[keys.NEIGHBOR_COUNTS], visible[unique])
    np.testing.assert_array_equal(batch[keys.NEIGHBOR_MASK], known[unique])
    np.testing.assert_array_equal(batch[keys.NEIGHBOR_LIBRARY], library[unique])
    for key in (keys.COUNTS, keys.MASK, keys.LIBRARY, keys.NEIGHBOR_COUNTS, keys.NEIGHBOR_DISTANCE):
        assert batch[key].dtype == np.float32


def test_masked_values_never_leave_the_data_set():
    adata = datasets.simulated_visium(n_spots=60, n_genes=15, seed=0)
    known = np.random.default_rng(0).random(adata.shape) > 0.3
    batches = []
    for value in (0, 99):
        changed = adata.copy()
        changed.X = sparse.csr_matrix(np.where(known, adata.X.toarray(), value).astype(np.float32))
        changed.layers["known"] = known
        batches.append(dataset_of(changed, mask_layer="known")[np.arange(60)])
    assert_same_batch(*batches)


@pytest.mark.parametrize("indexes", [5, [5], slice(5, 6), np.array([5])])
def test_ways_to_index(indexes):
    dataset = dataset_of(datasets.simulated_visium(n_spots=40, n_genes=8, seed=0))
    assert_same_batch(dataset[indexes], dataset[np.array([5])])


def test_neighbourhoods_do_not_depend_on_the_rest_of_the_batch():
    dataset = dataset_of(datasets.simulated_visium(n_spots=60, n_genes=8, seed=0))
    together = neighbor_sets(dataset[np.arange(60)])
    assert together == [neighbor_sets(dataset[[spot]])[0] for spot in range(60)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_batches(name):
    adata = datasets.simulated_visium(n_spots=60, n_genes=15, seed=0)
    reference = dataset_of(adata.copy())[np.arange(0, 60, 3)]
    adata.X = FORMATS[name](adata.X)
    assert_same_batch(reference, dataset_of(adata)[np.arange(0, 60, 3)])
    # also in a layer
    layered = adata.copy()
    layered.layers["counts"] = FORMATS[name](sparse.csr_matrix(adata.X))
    layered.X = None
    assert_same_batch(reference, dataset_of(layered, layer="counts")[np.arange(0, 60, 3)])


@pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csc_matrix, lambda x: x.toarray()])
def test_backed_data_give_the_same_batches(tmp_path, to_format):
    adata = datasets.simulated_visium(n_spots=60, n_genes=15, seed=0)
    reference = dataset_of(adata.copy())[np.arange(60)]
    adata.X = to_format(adata.X)
    adata.write_h5ad(tmp_path / "slide.h5ad")
    backed = ad.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    assert_same_batch(reference, dataset_of(backed)[np.arange(60)])
    backed.file.close()


def test_order_of_spots_does_not_matter():
    adata = datasets.simulated_visium(n_spots=60, n_genes=15, seed=0)
    pp.spatial_neighbors(adata)
    order = np.random.default_rng(0).permutation(60)
    shuffled = dataset_of(adata[order].copy())[np.arange(60)]
    original = dataset_of(adata)[order]
    np.testing.assert_array_equal(original[keys.COUNTS], shuffled[keys.COUNTS])
    assert neighbor_sets(original) == [set(order[list(row)].tolist()) for row in neighbor_sets(shuffled)]
    np.testing.assert_allclose(
        original[keys.NEIGHBOR_DISTANCE], shuffled[keys.NEIGHBOR_DISTANCE], rtol=1e-6
    )  # sorted by distance


# ---- spots of which nothing is known


def test_neighbours_without_content_are_left_out():
    counts = np.ones((5, 3))
    counts[2] = 0
    batch = dataset_of(chain(counts))[np.arange(5)]
    assert neighbor_sets(batch) == [{1}, {0}, {1, 3}, {4}, {3}]


def test_a_spot_without_useful_neighbours_looks_further():
    """Along the graph, to the first ring in which something is known."""
    counts = np.ones((7, 3))
    counts[[2, 3, 4]] = 0
    batch = dataset_of(chain(counts))[np.arange(7)]
    assert neighbor_sets(batch)[3] == {1, 5}
    assert neighbor_sets(batch)[2] == {1}
    np.testing.assert_allclose(batch[keys.NEIGHBOR_DISTANCE][3][batch[keys.NEIGHBOR_VALID][3]], 2.0)
    # the content of a spot never comes from itself
    assert all(spot not in row for spot, row in enumerate(neighbor_sets(batch)))


def test_a_data_set_without_some_spots_is_that_of_data_in_which_they_are_empty():
    adata = datasets.simulated_visium(n_spots=80, n_genes=10, seed=0)
    spots = np.array([3, 20, 21, 22])
    empty = adata.copy()
    empty.X = empty.X.toarray()
    empty.X[spots] = 0
    first, second = (dataset_of(data) for data in (adata, empty))
    part = first.without(spots)
    np.testing.assert_array_equal(part.neighbors, second.neighbors)
    np.testing.assert_array_equal(part.distances, second.distances)
    np.testing.assert_array_equal(part.far, second.far)
    for name, values in part[[0, 3, 40]].items():
        if name != "size_factor":  # libraries of hidden spots are known
            np.testing.assert_array_equal(values, second[[0, 3, 40]][name], err_msg=name)
    assert first.has_content.all() and not np.array_equal(first.neighbors, part.neighbors)


def test_a_masked_spot_has_no_content():
    adata = chain(np.ones((5, 3)))
    adata.layers["known"] = np.ones(adata.shape, bool)
    adata.layers["known"][2] = False
    batch = dataset_of(adata, mask_layer="known")[np.arange(5)]
    assert neighbor_sets(batch) == [{1}, {0}, {1, 3}, {4}, {3}]
    assert (batch[keys.MASK][2] == 0).all()


def test_never_more_neighbours_than_slots():
    """A far ring may be large; the nearest of it are enough."""
    n = 12
    adata = ad.AnnData(np.ones((n, 3), dtype=np.float32))
    adata.X[1] = 0
    angle = np.linspace(0, np.pi, n - 2)
    far = np.column_stack([np.cos(angle), np.sin(angle)]) * (20 + np.arange(n - 2))[:, None]
    adata.obsm["spatial"] = np.vstack([[0.0, 0.0], [1.0, 0.0], far])
    graph = np.zeros((n, n))
    graph[0, 1] = graph[1, 0] = 1
    graph[1, 2:8] = 1  # ring behind the empty spot
    graph[2:, 0] = 1
    adata.obsp["spatial_connectivities"] = sparse.csr_matrix(graph)
    batch = dataset_of(adata)[np.arange(n)]
    assert neighbor_sets(batch)[0] == {2, 3, 4, 5, 6, 7}
    assert batch[keys.NEIGHBOR_INDEX].shape[1] == 7  # the most that any spot has in the graph


def torn_chain(n: int, breaks: tuple[int, ...]) -> ad.AnnData:
    """A chain torn before some spots; the first two have no counts."""
    adata = chain(np.repeat([[0.0], [1.0]], [2, n - 2], axis=0) * np.ones(3))
    graph = adata.obsp["spatial_connectivities"].tolil()
    for spot in breaks:
        graph[spot - 1, spot] = graph[spot, spot - 1] = 0
    adata.obsp["spatial_connectivities"] = graph.tocsr()
    return adata


def test_a_piece_of_tissue_without_counts_looks_at_the_nearest_of_its_slide():
    adata = torn_chain(9, breaks=(2, 6))
    adata.obsm["spatial"][6:] = adata.obsm["spatial"][:3] + [0, 1]  # nearer, but on another slide
    adata.obs["slide"] = pd.Categorical(["a"] * 6 + ["b"] * 3)
    batch = dataset_of(adata, sample_key="slide")[np.arange(9)]
    assert neighbor_sets(batch)[:3] == [{2, 3}, {2, 3}, {3}]
    np.testing.assert_allclose(batch[keys.NEIGHBOR_DISTANCE][:2], [[2, 3], [1, 2]])


def test_a_slide_without_counts_is_refused():
    adata = torn_chain(6, breaks=(2,))
    adata.obs["slide"] = pd.Categorical(["a"] * 2 + ["b"] * 4)
    with pytest.raises(ValueError, match=r"2 of 6 spots \('0', '1'\) lie on a slide.*nothing predicts them; drop"):
        dataset_of(adata, sample_key="slide")


def test_a_slide_without_edges():
    adata = chain(np.ones((4, 3)))
    adata.obsp["spatial_connectivities"] = sparse.csr_matrix((4, 4))
    batch = dataset_of(adata)[np.arange(4)]
    assert not batch[keys.NEIGHBOR_VALID].any()
    assert batch[keys.NEIGHBOR_VALID].shape[1] >= 1


def test_distances_without_edges_are_in_units_of_the_nearest_spot():
    adata = torn_chain(6, breaks=())
    adata.obsp["spatial_connectivities"] = sparse.csr_matrix((6, 6))
    batch = dataset_of(adata)[np.arange(6)]
    assert neighbor_sets(batch) == [{2}, {2}, set(), set(), set(), set()]
    np.testing.assert_allclose(batch[keys.NEIGHBOR_DISTANCE][:2], [[2], [1]])


# ---- library sizes and likelihoods


def test_library_size_from_obs():
    adata = datasets.simulated_visium(n_spots=40, n_genes=8, seed=0)
    adata.obs["total"] = np.arange(40) + 1000
    batch = dataset_of(adata, size_factor_key="total")[[4, 7]]
    np.testing.assert_array_equal(batch[keys.LIBRARY].ravel(), [1004.0, 1007.0])


def test_whether_the_mask_hides_every_zero():
    adata = datasets.simulated_visium(n_spots=40, n_genes=8, seed=0)
    assert not dataset_of(adata).hides_every_zero()
    nonzero = adata.X.toarray() > 0
    adata = adata[:, nonzero.any(axis=0)].copy()
    nonzero = adata.X.toarray() > 0
    adata.layers["known"] = nonzero
    assert dataset_of(adata, mask_layer="known").hides_every_zero()
    # hiding more changes nothing; one visible zero does
    hidden = nonzero.copy()
    hidden[np.nonzero(nonzero)[0][:3], np.nonzero(nonzero)[1][:3]] = False
    adata.layers["known"] = hidden
    if hidden.any(axis=0).all():
        assert dataset_of(adata, mask_layer="known").hides_every_zero()
    shown = nonzero.copy()
    shown[tuple(np.argwhere(~nonzero)[0])] = True
    adata.layers["known"] = shown
    assert not dataset_of(adata, mask_layer="known").hides_every_zero()
    adata.X = adata.X.toarray()
    assert not dataset_of(adata, mask_layer="known").hides_every_zero()


# ---- memory


def test_nothing_of_size_spots_by_spots_exists():
    """20,000 spots: one dense bool matrix of all pairs would take 400 MB."""
    n = 20_000
    side = int(np.ceil(np.sqrt(n)))
    adata = ad.AnnData(sparse.random(n, 50, 0.3, "csr", np.float32, rng(0), lambda size: np.ones(size)))
    spot = np.arange(n)
    adata.obsm["spatial"] = np.column_stack([spot % side, spot // side]).astype(float)
    right = spot[(spot % side < side - 1) & (spot < n - 1)]
    edge = sparse.coo_matrix((np.ones(len(right)), (right, right + 1)), shape=(n, n))
    adata.obsp["spatial_connectivities"] = sparse.csr_matrix(edge + edge.T)
    tracemalloc.start()
    try:
        dataset = dataset_of(adata)
        dataset[np.arange(512)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    # nor of spots by neighbours by genes
    assert sparse.issparse(dataset.counts)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
