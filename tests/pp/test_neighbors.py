from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from lgdist_scvi import pp
from lgdist_scvi._lattice import lattice


def hexagonal(n: int = 12, pitch: float = 137.0) -> np.ndarray:
    i, j = np.mgrid[:n, :n]
    return pitch * np.column_stack([(j + 0.5 * (i % 2)).ravel(), (i * np.sqrt(3) / 2).ravel()])


def square(n: int = 12, pitch: float = 200.0) -> np.ndarray:
    i, j = np.mgrid[:n, :n]
    return pitch * np.column_stack([j.ravel(), i.ravel()]).astype(float)


def spots(coordinates: np.ndarray, samples=None) -> ad.AnnData:
    obs = pd.DataFrame(index=[f"spot_{i}" for i in range(len(coordinates))])
    adata = ad.AnnData(obs=obs, obsm={"spatial": np.asarray(coordinates, dtype=float)})
    if samples is not None:
        adata.obs["sample"] = samples
    return adata


def neighbor_sets(adata: ad.AnnData, key: str = "spatial") -> list[set[int]]:
    graph = adata.obsp[f"{key}_connectivities"]
    return [set(graph.indices[a:b].tolist()) for a, b in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)]


def within(coordinates: np.ndarray, radius: float) -> list[set[int]]:
    distances = cdist(coordinates, coordinates)
    np.fill_diagonal(distances, np.inf)
    return [set(np.flatnonzero(row <= radius).tolist()) for row in distances]


class TestIrregular:
    @pytest.mark.parametrize("k", [1, 6, 15])
    def test_exact_nearest_neighbors_on_each_slide(self, k):
        rng = np.random.default_rng(k)
        coordinates = rng.normal(size=(240, 2)) * [300, 50]
        samples = rng.choice(["a", "b", "c"], size=240)  # spots of slides interleaved
        adata = spots(coordinates, samples)
        pp.spatial_neighbors(adata, n_neighbors=k, sample_key="sample")
        distances = cdist(coordinates, coordinates)
        distances[samples[:, None] != samples[None]] = np.inf
        np.fill_diagonal(distances, np.inf)
        expected = np.argsort(distances, axis=1)[:, :k]
        assert neighbor_sets(adata) == [set(row.tolist()) for row in expected]
        written = adata.obsp["spatial_distances"]
        rows = np.repeat(np.arange(240), np.diff(written.indptr))
        np.testing.assert_allclose(written.data, distances[rows, written.indices], rtol=1e-6)
        assert list(adata.uns["spatial_neighbors"]["params"]["geometry"]) == ["irregular"] * 3

    def test_a_lone_bead_has_no_neighbors_and_is_nobodys(self):
        tissue = np.random.default_rng(0).random((300, 2))
        adata = spots(np.vstack([tissue, [[9, 9]]]))
        pp.spatial_neighbors(adata)
        found = neighbor_sets(adata)
        assert found[300] == set()
        assert all(len(found[i]) == 6 for i in range(300))

    def test_sparse_tissue_beside_dense_tissue_keeps_its_neighbors(self):
        rng = np.random.default_rng(0)
        dense, loose = rng.random((3000, 2)), rng.random((300, 2)) * [10, 1] + [1, 0]  # 100 times fewer per area
        adata = spots(np.vstack([dense, loose]))
        pp.spatial_neighbors(adata)
        assert set(map(len, neighbor_sets(adata))) == {6}

    def test_three_dimensions(self):
        coordinates = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), axis=-1).reshape(-1, 3)
        adata = spots(coordinates)
        pp.spatial_neighbors(adata, n_neighbors=26, max_distance=1.1)
        assert neighbor_sets(adata) == within(coordinates, 1.0)

    def test_max_distance(self):
        coordinates = np.random.default_rng(0).random((100, 2))
        adata = spots(coordinates)
        pp.spatial_neighbors(adata, n_neighbors=99, max_distance=0.1)
        assert neighbor_sets(adata) == within(coordinates, 0.1)


class TestLattice:
    @pytest.mark.parametrize("angle", [0, 0.3])
    @pytest.mark.parametrize(
        ("layout", "k", "rings"),
        [
            (hexagonal, 6, 1),
            (hexagonal, 12, np.sqrt(3)),
            (hexagonal, 18, 2),
            (hexagonal, 36, 3),
            (square, 4, 1),
            (square, 8, np.sqrt(2)),
            (square, 12, 2),
            (square, 24, np.sqrt(8)),
        ],
    )
    def test_whole_rings_and_nothing_beyond(self, layout, k, rings, angle):
        coordinates = layout(pitch=50.0) @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        adata = spots(coordinates)
        pp.spatial_neighbors(adata, n_neighbors=k)
        found = neighbor_sets(adata)
        assert found == within(coordinates, 50.0 * rings + 0.1)
        degrees = [len(neighbors) for neighbors in found]
        assert max(degrees) == k
        assert min(degrees) < k  # the corners

    def test_fragmented_tissue_has_no_second_ring(self):
        import squidpy as sq

        coordinates = hexagonal(30, 100.0)
        coordinates = coordinates[np.random.default_rng(0).random(len(coordinates)) < 0.3]
        adata = spots(coordinates)
        pp.spatial_neighbors(adata)
        assert neighbor_sets(adata) == within(coordinates, 101)
        assert 0 in map(len, neighbor_sets(adata))
        # why squidpy's grid builder is not enough
        grid = sq.gr.spatial_neighbors_grid(adata, n_neighs=6, copy=True).connectivities.tocoo()
        assert np.linalg.norm(coordinates[grid.row] - coordinates[grid.col], axis=1).max() > 170

    def test_incomplete_ring_takes_opposite_pairs_and_ignores_the_order_of_spots(self):
        coordinates = square(9)
        adata = spots(coordinates)
        pp.spatial_neighbors(adata, n_neighbors=6)
        graph = adata.obsp["spatial_connectivities"]
        inner = [i for i in range(81) if 0 < i % 9 < 8 and 0 < i // 9 < 8]
        among_inner = graph[inner][:, inner]
        assert (among_inner != among_inner.T).nnz == 0
        assert all(len(neighbor_sets(adata)[i]) == 6 for i in inner)
        nearest = within(coordinates, 201)
        assert all(nearest[i] <= neighbor_sets(adata)[i] for i in range(81))

        order = np.random.default_rng(0).permutation(81)
        shuffled = spots(coordinates[order])
        pp.spatial_neighbors(shuffled, n_neighbors=6)
        expected = graph[order][:, order]
        assert (shuffled.obsp["spatial_connectivities"] != expected).nnz == 0

    def test_fewer_than_the_first_ring(self):
        adata = spots(hexagonal())
        pp.spatial_neighbors(adata, n_neighbors=4)
        rings = within(hexagonal(), 138)
        for found, ring in zip(neighbor_sets(adata), rings, strict=True):
            assert found <= ring
            assert len(found) == min(4, len(ring))

    @pytest.mark.parametrize("n", [3, 4, 5, 30])
    def test_recognised_from_few_spots(self, n):
        assert lattice(hexagonal(n))[0] == "hexagonal"
        assert lattice(square(n))[0] == "square"
        assert lattice(hexagonal(n, 137.0))[1] == pytest.approx(137)

    def test_printed_arrays_scatter(self):
        rng = np.random.default_rng(0)
        for layout, name in ((hexagonal, "hexagonal"), (square, "square")):
            kind, pitch = lattice(layout(20, 100) + rng.normal(0, 4, size=(400, 2)))
            assert kind == name
            assert pitch == pytest.approx(100, rel=0.03)

    def test_not_seen_in_scattered_points(self):
        rng = np.random.default_rng(0)
        for n in (2, 3, 10, 40, 60, 400, 3000):
            assert lattice(rng.random((n, 2)))[0] == "irregular"
        beads = np.empty((0, 2))  # as close as beads can lie, but without order
        for point in rng.random((20000, 2)):
            if not len(beads) or np.min(np.sum((beads - point) ** 2, axis=1)) > 0.04**2:
                beads = np.vstack([beads, point])
        assert lattice(beads)[0] == "irregular"


class TestArrayPositions:
    @pytest.mark.parametrize("known", [True, False])
    @pytest.mark.parametrize("swapped", [True, False])
    @pytest.mark.parametrize("shape", [(20, 20), (30, 12)])
    def test_rows_and_columns_give_the_graph_of_the_pixels(self, shape, swapped, known):
        row, place = np.divmod(np.arange(np.prod(shape)), shape[1])
        col = 2 * place + row % 2
        if not known and np.ptp(row) > np.ptp(col):
            pytest.skip("nothing tells rows from columns there; the warning says which was taken")
        true = spots(100 * np.column_stack([col / 2, row * np.sqrt(3) / 2]))
        pp.spatial_neighbors(true)
        array = spots(np.column_stack([row, col] if swapped else [col, row]))
        if known:
            array.obs["array_row"], array.obs["array_col"] = row, col
        taken = 0 if swapped else 1
        with pytest.warns(UserWarning, match=f"rows and columns of the array, no pixels: column {taken} is taken"):
            pp.spatial_neighbors(array)
        assert list(array.uns["spatial_neighbors"]["params"]["geometry"]) == ["hexagonal"]
        assert neighbor_sets(array) == neighbor_sets(true)

    @pytest.mark.parametrize("change", [lambda xy: xy + 0.5, lambda xy: xy / 127, lambda xy: 10.0 * xy, lambda xy: -xy])
    def test_whatever_they_are_counted_in(self, change):
        row, place = np.divmod(np.arange(400), 20)
        col = 2 * place + row % 2
        true = spots(100 * np.column_stack([col / 2, row * np.sqrt(3) / 2]))
        pp.spatial_neighbors(true)
        array = spots(change(np.column_stack([col, row])))
        with pytest.warns(UserWarning, match="column 1 is taken for the rows"):
            pp.spatial_neighbors(array)
        assert neighbor_sets(array) == neighbor_sets(true)

    def test_after_a_column_that_is_the_same_everywhere(self):
        row, place = np.divmod(np.arange(400), 20)
        array = spots(np.column_stack([np.ones(400), row, 2 * place + row % 2]))  # in_tissue, array_row, array_col
        with pytest.warns(UserWarning, match="holds rows and columns of the array"):
            pp.spatial_neighbors(array)
        assert list(array.uns["spatial_neighbors"]["params"]["geometry"]) == ["hexagonal"]

    def test_whole_numbers_on_a_square_lattice_stay_as_they_are(self):
        adata = spots(square(12, 1.0))
        pp.spatial_neighbors(adata, n_neighbors=4)
        assert neighbor_sets(adata) == within(square(12, 1.0), 1.01)


class TestSlides:
    def test_slides_that_overlap(self):
        one = hexagonal(8)
        samples = np.tile(["a", "b"], len(one))
        adata = spots(np.repeat(one, 2, axis=0), samples)
        pp.spatial_neighbors(adata, sample_key="sample")
        expected = within(one, 138)
        found = neighbor_sets(adata)
        assert found[0::2] == [{2 * j for j in neighbors} for neighbors in expected]
        assert found[1::2] == [{2 * j + 1 for j in neighbors} for neighbors in expected]

    def test_tiny_slides(self):
        rng = np.random.default_rng(0)
        sizes = {"one": 1, "two": 2, "three": 3, "six": 6, "many": 50}
        samples = np.repeat(list(sizes), list(sizes.values()))
        adata = spots(rng.random((len(samples), 2)), samples)
        pp.spatial_neighbors(adata, n_neighbors=6, sample_key="sample")
        degrees = np.diff(adata.obsp["spatial_connectivities"].indptr)
        for name, size in sizes.items():
            np.testing.assert_array_equal(degrees[samples == name], min(6, size - 1))

    def test_single_spot(self):
        adata = spots(np.zeros((1, 2)))
        pp.spatial_neighbors(adata)
        assert adata.obsp["spatial_connectivities"].shape == (1, 1)
        assert adata.obsp["spatial_connectivities"].nnz == 0

    def test_slides_of_different_geometry(self):
        coordinates = np.vstack([hexagonal(8), square(8), np.random.default_rng(0).random((64, 2))])
        adata = spots(coordinates, np.repeat(["h", "s", "i"], 64))
        pp.spatial_neighbors(adata, sample_key="sample")
        params = adata.uns["spatial_neighbors"]["params"]
        assert list(params["geometry"]) == ["hexagonal", "square", "irregular"]
        assert list(params["samples"]) == ["h", "s", "i"]


class TestWritten:
    def test_keys_and_matrices(self, tmp_path):
        adata = spots(hexagonal(), pd.Categorical(["a"] * 144))
        pp.spatial_neighbors(adata, sample_key="sample", key_added="near")
        connectivities, distances = adata.obsp["near_connectivities"], adata.obsp["near_distances"]
        for matrix in (connectivities, distances):
            assert matrix.format == "csr"
            assert matrix.dtype == np.float32
            assert matrix.has_sorted_indices
            assert not matrix.diagonal().any()
        np.testing.assert_array_equal(connectivities.indices, distances.indices)
        np.testing.assert_array_equal(connectivities.data, 1)
        np.testing.assert_allclose(distances.data, 137, rtol=1e-5)
        written = adata.uns["near_neighbors"]
        assert written["connectivities_key"] == "near_connectivities"
        assert written["distances_key"] == "near_distances"
        assert written["params"]["n_neighbors"] == 6
        assert written["params"]["coord_type"] == "grid"
        adata.write_h5ad(tmp_path / "a.h5ad")
        read = ad.read_h5ad(tmp_path / "a.h5ad")
        assert (read.obsp["near_connectivities"] != connectivities).nnz == 0
        assert list(read.uns["near_neighbors"]["params"]["samples"]) == ["a"]

    def test_squidpy_reads_it(self, slide):
        import squidpy as sq

        pp.spatial_neighbors(slide)
        sq.gr.nhood_enrichment(slide, cluster_key="domain", n_perms=10, seed=0, show_progress_bar=False)
        assert "domain_nhood_enrichment" in slide.uns

    def test_coordinates_are_left_alone(self):
        adata = spots(hexagonal())
        before = adata.obsm["spatial"].copy()
        pp.spatial_neighbors(adata)
        np.testing.assert_array_equal(adata.obsm["spatial"], before)


class TestErrors:
    @pytest.mark.parametrize("k", [0, -1, 2.5, True, "6", None])
    def test_n_neighbors(self, k):
        with pytest.raises(ValueError, match="n_neighbors must be a whole number of at least 1"):
            pp.spatial_neighbors(spots(square(3)), n_neighbors=k)

    @pytest.mark.parametrize("distance", [0, -1.0, np.nan])
    def test_max_distance(self, distance):
        with pytest.raises(ValueError, match="max_distance must be positive"):
            pp.spatial_neighbors(spots(square(3)), max_distance=distance)

    def test_names_and_spots(self):
        with pytest.raises(ValueError, match="key_added='a/b' is no name"):
            pp.spatial_neighbors(spots(square(3)), key_added="a/b")
        with pytest.raises(ValueError, match="adata has 0 spots"):
            pp.spatial_neighbors(spots(np.empty((0, 2))))

    def test_keys(self):
        with pytest.raises(KeyError, match="'xy' not found in adata.obsm; available: 'spatial'"):
            pp.spatial_neighbors(spots(square(3)), spatial_key="xy")
        with pytest.raises(KeyError, match="'slide' not found in adata.obs; available: 'sample'"):
            pp.spatial_neighbors(spots(square(3), ["a"] * 9), sample_key="slide")

    def test_coordinates(self):
        adata = spots(square(3))
        adata.obsm["spatial"][0] = np.nan
        with pytest.raises(ValueError, match="1 of 9 spots have NaN"):
            pp.spatial_neighbors(adata)
        adata.obsm["spatial"][0] = adata.obsm["spatial"][1]
        with pytest.raises(ValueError, match="2 of 9 spots share their coordinates"):
            pp.spatial_neighbors(adata)


@pytest.mark.parametrize(
    ("name", "geometry"),
    [
        ("human_dlpfc_151673", "hexagonal"),
        ("mouse_muscle_Vis7B_5dpi", "hexagonal"),
        ("human_breast_visium_subset", "hexagonal"),
        ("mouse_embryo_cytassist", "hexagonal"),
        ("her2st_A", "square"),
        ("her2st_C", "square"),
        ("mouse_hippocampus_slideseqv2_subset", "irregular"),
    ],
)
def test_real_slides(shared_data, name, geometry):
    adata = ad.read_h5ad(shared_data / f"{name}.h5ad", backed="r")
    sample_key = "sample" if "sample" in adata.obs else None
    pp.spatial_neighbors(adata, sample_key=sample_key)
    assert set(adata.uns["spatial_neighbors"]["params"]["geometry"]) == {geometry}
    graph = adata.obsp["spatial_connectivities"]
    degrees = np.diff(graph.indptr)
    assert degrees.max() == 6
    assert np.mean(degrees == 6) > (0.99 if geometry == "irregular" else 0.7)
    if sample_key is not None:
        samples = adata.obs["sample"].to_numpy()
        assert (samples[graph.tocoo().row] == samples[graph.tocoo().col]).all()
    adata.file.close()
