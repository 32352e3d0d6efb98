from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from lgdist_scvi import _anndata as reading

FORMATS = [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array, np.asarray]


def _counts(n_obs: int = 30, n_vars: int = 12, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, size=(n_obs, n_vars)).astype(dtype)


def _adata(x=None) -> ad.AnnData:
    x = _counts() if x is None else x
    adata = ad.AnnData(x)
    adata.obsm["spatial"] = np.random.default_rng(1).random((adata.n_obs, 2))
    return adata


class TestCounts:
    @pytest.mark.parametrize("to_format", FORMATS)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
    def test_any_format_and_whole_dtype(self, to_format, dtype):
        dense = _counts(dtype=dtype)
        counts = reading.get_counts(_adata(to_format(dense)))
        if to_format is np.asarray:
            assert isinstance(counts, np.ndarray)
            np.testing.assert_array_equal(counts, dense)
        else:
            assert type(counts) is sparse.csr_matrix
            assert counts.has_sorted_indices
            np.testing.assert_array_equal(counts.toarray(), dense)
        assert counts.dtype == dtype

    @pytest.mark.parametrize("to_format", [sparse.csr_matrix, np.asarray])
    def test_backed_and_views(self, tmp_path, to_format):
        dense = _counts()
        _adata(to_format(dense)).write_h5ad(tmp_path / "a.h5ad")
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        for adata, expected in (
            (backed, dense),
            (backed[::2, 3:7], dense[::2, 3:7]),
            (_adata(to_format(dense))[::-1], dense[::-1]),
        ):
            counts = reading.get_counts(adata)
            assert type(counts) in (sparse.csr_matrix, np.ndarray)
            np.testing.assert_array_equal(counts.toarray() if sparse.issparse(counts) else counts, expected)
        backed.file.close()

    def test_stored_zeros_duplicates_and_disorder_are_normalised_in_a_copy(self):
        x = sparse.csr_matrix(
            (np.array([2.0, 0.0, 1.0, 3.0]), np.array([2, 1, 0, 2]), np.array([0, 3, 4])), shape=(2, 3)
        )
        counts = reading.get_counts(ad.AnnData(x))
        np.testing.assert_array_equal(counts.indices, [0, 2, 2])
        assert counts.nnz == 3
        assert x.nnz == 4 and x.indices[0] == 2

    @pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csc_array, np.asarray])
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (np.nan, "2 of 360 entries of adata.X are NaN; replace them by 0, .*mask_layer"),
            (np.inf, "2 of 360 entries of adata.X are infinite; .*layer="),
            (-1, "2 of 360 entries of adata.X are negative; .*layer="),
            (0.5, "2 of 360 entries of adata.X are not whole numbers; .*normalised.*layer="),
        ],
    )
    def test_values_that_are_not_counts(self, to_format, value, message):
        x = _counts()
        x[3, 4] = x[5, 6] = value
        with pytest.raises(ValueError, match=message):
            reading.get_counts(_adata(to_format(x)))

    def test_layers(self):
        adata = _adata()
        adata.layers["counts"] = _counts() + 1
        np.testing.assert_array_equal(reading.get_counts(adata, "counts"), _counts() + 1)
        with pytest.raises(KeyError, match="'raw' not found in adata.layers; available: 'counts'; pass the layer"):
            reading.get_counts(adata, "raw")
        adata.X = None
        with pytest.raises(ValueError, match=r"adata.X is empty; .*\(layer=...; whole numbers are in 'counts'\)"):
            reading.get_counts(adata)

    def test_says_where_counts_are(self):
        adata = _adata()
        adata.raw = adata.copy()
        adata = adata[:, :5].copy()
        adata.X = np.log1p(adata.X)
        with pytest.raises(ValueError, match="adata.raw holds counts") as raised:
            reading.get_counts(adata)
        line = re.search(r'layers\["counts"\] = .*?\.X', str(raised.value))[0]
        exec(f"adata.{line}", {"adata": adata})  # the remedy works as it is printed
        np.testing.assert_array_equal(reading.get_counts(adata, "counts"), _counts()[:, :5])
        adata.layers["fractions"] = adata.X
        with pytest.raises(ValueError, match=r"\(counts_layer=...; whole numbers are in 'counts'\)"):
            reading.get_counts(adata, "fractions", "counts_layer")
        adata.X = _counts()[:, :5]
        with pytest.raises(ValueError, match="adata.X holds counts: pass layer=None"):
            reading.get_counts(adata, "fractions")

    def test_layers_of_a_completion_are_no_counts(self):
        adata = _adata(_counts() * 1.5)
        adata.uns["filled"] = {"provenance": ["measured"]}
        adata.layers["filled_provenance"] = np.zeros(adata.shape, dtype=np.uint8)
        with pytest.raises(ValueError, match=r"layer=\.\.\.; available: none"):
            reading.get_counts(adata)

    def test_no_spots(self):
        with pytest.raises(ValueError, match="adata has 0 spots; .*sc.pp.filter_cells"):
            reading.get_counts(_adata()[:0].copy())


class TestGenes:
    def test_another_case_or_spelling(self):
        adata = _adata()
        adata.var_names = ["Rpl7", "Malat1", *map(str, range(10))]
        with pytest.raises(KeyError, match="1 of 2 genes .*: 'RPL7'; did you mean 'Rpl7'"):
            reading.get_genes(adata, ["RPL7", "Malat1"])
        with pytest.raises(KeyError, match="'Malat2'; did you mean 'Malat1'"):
            reading.get_genes(adata, ["Malat2"])
        with pytest.raises(KeyError, match="'Foo'; pass names"):
            reading.get_genes(adata, ["Foo"])


class TestGraph:
    def test_lazy(self):
        da = pytest.importorskip("dask.array")
        adata = _adata()
        graph = sparse.random(30, 30, 0.2, format="csr", rng=0)
        adata.obsp["near"] = da.from_array(graph, chunks=(15, 30), asarray=False)
        assert (reading.get_graph(adata, "near") != graph).nnz == 0


class TestSamples:
    @pytest.mark.parametrize("categorical", [True, False])
    def test_samples(self, categorical):
        adata = _adata()
        labels = ["b", "a", "c"] * 10
        adata.obs["slide"] = pd.Categorical(labels, ["z", "a", "b", "c"]) if categorical else labels
        np.testing.assert_array_equal(reading.get_samples(adata, "slide"), [0, 1, 2] * 10)
        np.testing.assert_array_equal(reading.get_samples(adata, None), np.zeros(30))
        with pytest.raises(KeyError, match="'batch' not found in adata.obs; available: 'slide'"):
            reading.get_samples(adata, "batch")

    def test_spots_without_sample(self):
        adata = _adata()
        adata.obs["slide"] = ["a"] * 28 + [None, np.nan]
        with pytest.raises(ValueError, match=r"2 of 30 spots have no value in adata.obs\['slide'\]"):
            reading.get_samples(adata, "slide")


class TestCoordinates:
    def test_arrays_and_frames(self):
        adata = _adata()
        expected = adata.obsm["spatial"]
        adata.obsm["frame"] = pd.DataFrame(expected, index=adata.obs_names, columns=["x", "y"])
        np.testing.assert_array_equal(reading.get_coordinates(adata), expected)
        np.testing.assert_array_equal(reading.get_coordinates(adata, "frame"), expected)
        assert reading.get_coordinates(adata).dtype == np.float64

    def test_missing(self):
        with pytest.raises(KeyError, match="'xy' not found in adata.obsm; available: 'spatial'; .*spatial_key"):
            reading.get_coordinates(_adata(), "xy")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite(self, value):
        adata = _adata()
        adata.obsm["spatial"][4:6, 1] = value
        with pytest.raises(ValueError, match="2 of 30 spots have NaN or infinite coordinates"):
            reading.get_coordinates(adata)

    def test_not_a_table_of_numbers(self):
        adata = _adata()
        adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]
        with pytest.raises(ValueError, match=r"shape \(30, 1\); expected \(30, 2\)"):
            reading.get_coordinates(adata)
        adata.obsm["spatial"] = pd.DataFrame({"x": ["left"] * 30, "y": 1.0}, index=adata.obs_names)
        with pytest.raises(ValueError, match="not numeric"):
            reading.get_coordinates(adata)

    @pytest.mark.parametrize("kind", ["complex128", "datetime64[s]", "timedelta64[s]"])
    def test_neither_complex_numbers_nor_dates(self, kind):
        adata = _adata()
        values = np.arange(60).reshape(30, 2).astype(kind)
        for stored in (values, pd.DataFrame(values, index=adata.obs_names), values.astype(object)):
            adata.obsm["spatial"] = stored
            with pytest.raises(ValueError, match=r"adata.obsm\['spatial'\] is not numeric; store the x and y"):
                reading.get_coordinates(adata)
        adata.obs["depth"] = values[:, 0]
        with pytest.raises(ValueError, match=r"adata.obs\['depth'\] is not numeric; give library sizes"):
            reading.get_library(adata, "depth")

    def test_more_columns_than_a_place_has(self):
        adata = _adata()
        adata.obsm["spatial"] = pd.DataFrame(
            np.random.default_rng(0).random((30, 5)),
            index=adata.obs_names,
            columns=["in_tissue", "array_row", "array_col", "pxl_row", "pxl_col"],
        )
        with pytest.raises(ValueError, match=r"shape \(30, 5\) \('in_tissue', .*\); expected \(30, 2\)"):
            reading.get_coordinates(adata)

    @pytest.mark.parametrize("column", [0, 1, 2])
    @pytest.mark.parametrize("first", [0, 1, 7])
    def test_section_numbers_are_no_distance(self, first, column):
        adata = _adata()
        place, section = adata.obsm["spatial"] * 1000, np.repeat([first, first + 1, first + 3], 10)
        adata.obsm["spatial"] = np.insert(place, column, section, axis=1)
        with pytest.raises(
            ValueError, match=f"{('first', 'second', 'third')[column]} column .* numbers sections"
        ) as raised:
            reading.get_coordinates(adata)
        line = re.search(r'adata\.obs\["section"\] = .*astype\(str\)', str(raised.value))[0]
        exec(line, {"adata": adata, "np": np})
        assert adata.obs["section"].nunique() == 3
        adata.obsm["spatial"] = np.column_stack([place, 250.0 * section])  # in the units of x and y
        assert reading.get_coordinates(adata).shape == (30, 3)

    @pytest.mark.parametrize("column", [0, 1, 2])
    def test_a_column_that_is_the_same_everywhere_is_no_coordinate(self, column):
        adata = _adata()
        place = np.array(adata.obsm["spatial"])
        adata.obsm["spatial"] = np.insert(place, column, 1.0, axis=1)  # in_tissue, or a flat z
        np.testing.assert_array_equal(reading.get_coordinates(adata), place)

    def test_says_where_coordinates_are(self):
        adata = _adata()
        adata.obsm["X_spatial"] = adata.obsm.pop("spatial")
        with pytest.raises(KeyError, match="pass spatial_key='X_spatial'"):
            reading.get_coordinates(adata)
        del adata.obsm["X_spatial"]
        adata.obs[["x_centroid", "y_centroid"]] = np.random.default_rng(0).random((30, 2))
        with pytest.raises(KeyError, match=r"adata.obsm\['spatial'\] = adata.obs\[\['x_centroid', 'y_centroid'\]\]"):
            reading.get_coordinates(adata)

    def test_duplicates_within_a_slide_only(self):
        adata = _adata()
        adata.obs["slide"] = np.repeat(["a", "b"], 15)
        adata.obsm["spatial"][15:] = adata.obsm["spatial"][:15]
        reading.get_coordinates(adata, sample_key="slide")
        with pytest.raises(ValueError, match="30 of 30 spots share their coordinates .*pass sample_key"):
            reading.get_coordinates(adata)
        adata.obsm["spatial"][1] = adata.obsm["spatial"][0]
        with pytest.raises(ValueError, match="2 of 30 spots share .*slide; keep one spot per place"):
            reading.get_coordinates(adata, sample_key="slide")


class TestMask:
    @pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
    @pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csr_array, np.asarray])
    def test_any_storage(self, dtype, to_format):
        adata = _adata()
        adata.layers["observed"] = to_format((_counts() > 0).astype(dtype))
        mask = reading.get_mask(adata, "observed")
        assert type(mask) is np.ndarray or isinstance(mask, np.ndarray)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, _counts() > 0)

    def test_missing_names_the_remedy(self):
        with pytest.raises(KeyError, match="'observed' not found in adata.layers; available: none; .*pp.observed_mask"):
            reading.get_mask(_adata(), "observed")

    def test_a_hold_out_is_no_mask(self):
        adata = _adata()
        adata.layers["held_out"] = np.zeros(adata.shape, dtype=bool)
        with pytest.raises(KeyError, match=r"pp.observed_mask\(adata, method='held_out'\) writes the mask"):
            reading.get_mask(adata, "observed")

    def test_other_values(self):
        adata = _adata()
        adata.layers["observed"] = np.full(adata.shape, 2)
        with pytest.raises(ValueError, match="360 of 360 entries .* are neither 0 nor 1"):
            reading.get_mask(adata, "observed")
        adata.layers["observed"] = np.full(adata.shape, np.nan)
        with pytest.raises(ValueError, match="neither 0 nor 1"):
            reading.get_mask(adata, "observed")
        adata.layers["observed"] = np.full(adata.shape, "yes", dtype=object)
        with pytest.raises(ValueError, match="dtype object; a mask is bool"):
            reading.get_mask(adata, "observed")
