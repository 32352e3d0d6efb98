from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from lgdist_scvi import pp

SCHEMES = ["entry", "spot", "block", "sample", "thinning"]
FORMATS = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
}


def slides(n_obs: int = 60, n_vars: int = 15, seed: int = 0, x=None) -> ad.AnnData:
    """Three slides on small lattices, spots interleaved, library sizes over more genes than are kept."""
    rng = np.random.default_rng(seed)
    if x is None:
        x = rng.poisson(rng.gamma(1.0, 1.5, size=n_vars), size=(n_obs, n_vars)).astype(np.float32)
    x[0] = 3  # something to hide in every gene, whatever the draw
    adata = ad.AnnData(x)
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    adata.obs["slide"] = np.resize(["a", "b", "c"], adata.n_obs)
    place = np.arange(adata.n_obs) // 3
    adata.obsm["spatial"] = np.column_stack([place % 5, place // 5]).astype(float)
    adata.obs["total_counts"] = x.sum(axis=1) + 100.0
    adata.var["chosen"] = np.arange(adata.n_vars) % 3 == 0
    return adata


def dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


settings = {
    "scheme": st.sampled_from(SCHEMES),
    "fraction": st.floats(0.05, 0.95),
    "seed": st.integers(0, 2**32),
    "genes": st.sampled_from([None, "chosen", ("g1",), ("g4", "g2", "g0")]),
    "data_seed": st.integers(0, 100),
}


class TestProperties:
    @given(**settings)
    def test_visible_entries_never_change_and_nothing_hidden_shows(self, scheme, fraction, seed, genes, data_seed):
        adata = slides(seed=data_seed)
        adata.X[1:4, :5] = 1
        truth = adata.X.copy()
        result = pp.hold_out(adata, fraction, scheme, genes, sample_key="slide", seed=seed)
        held_out = result.layers["held_out"]
        assert held_out.dtype == bool and type(held_out) is np.ndarray
        np.testing.assert_array_equal(result.layers["truth"], truth)
        np.testing.assert_array_equal(result.X[~held_out], truth[~held_out])
        if scheme == "thinning":
            assert ((result.X >= 0) & (result.X <= truth)).all()
        else:
            assert not result.X[held_out].any()
        chosen = pp_chosen(adata, genes)
        assert not held_out[:, ~chosen].any()
        hidden = (truth - result.X).sum(axis=1)
        np.testing.assert_allclose(result.obs["total_counts"], adata.obs["total_counts"] - hidden)
        assert result.uns["hold_out"]["n_counts"] == hidden.sum()
        assert result.uns["hold_out"]["n_entries"] == held_out.sum()
        assert result.uns["hold_out"]["n_genes"] == chosen.sum()

    @given(**settings)
    def test_the_stated_fraction_is_hidden(self, scheme, fraction, seed, genes, data_seed):
        adata = slides(seed=data_seed)
        result = pp.hold_out(adata, fraction, scheme, genes, sample_key="slide", seed=seed)
        held_out, chosen = result.layers["held_out"], pp_chosen(adata, genes)
        spots = held_out.any(axis=1)
        if scheme == "thinning":
            assert held_out[:, chosen].all()
            return
        if scheme == "entry":
            assert not held_out[adata.X == 0].any()
            n, total = held_out.sum(), np.count_nonzero(adata.X[:, chosen])
        else:
            assert held_out[np.ix_(spots, chosen)].all()
        if scheme == "spot":
            n, total = spots.sum(), adata.n_obs
        elif scheme == "sample":
            per_slide = pd.Series(spots).groupby(adata.obs["slide"].to_numpy()).mean()
            assert per_slide.isin([0, 1]).all()
            assert 1 <= per_slide.sum() <= 2
            n, total = per_slide.sum(), 3
            if n == 2:  # one slide stays
                return
        if scheme == "block":
            for _, part in pd.Series(spots).groupby(adata.obs["slide"].to_numpy()):
                assert abs(part.sum() - fraction * len(part)) <= 0.5 + 1e-9
        else:
            assert n == 1 or abs(n - fraction * total) <= 0.5 + 1e-9

    @given(name=st.sampled_from(list(FORMATS)), dtype=st.sampled_from([np.float32, np.float64, np.int64]), **settings)
    def test_same_seed_same_result_in_every_format(self, name, dtype, scheme, fraction, seed, genes, data_seed):
        reference = slides(seed=data_seed)
        other = slides(seed=data_seed)
        other.X = FORMATS[name](other.X.astype(dtype))
        a = pp.hold_out(reference, fraction, scheme, genes, sample_key="slide", seed=seed)
        b = pp.hold_out(other, fraction, scheme, genes, sample_key="slide", seed=seed)
        for x in (b.X, b.layers["truth"]):
            assert type(x) is type(other.X)
            assert x.dtype == dtype
        np.testing.assert_array_equal(dense(b.X), a.X)
        np.testing.assert_array_equal(b.layers["held_out"], a.layers["held_out"])
        np.testing.assert_array_equal(b.obs["total_counts"], a.obs["total_counts"])

    @given(**settings)
    def test_input_is_never_modified(self, scheme, fraction, seed, genes, data_seed):
        adata = slides(seed=data_seed)
        adata.X = sparse.csr_matrix(adata.X)
        adata.layers["other"] = adata.X.copy()
        adata.uns["nested"] = {"array": np.zeros(3)}
        before = adata.copy()
        result = pp.hold_out(adata, fraction, scheme, genes, sample_key="slide", seed=seed)
        result.X.data[:] = -1
        result.layers["truth"].data[:] = -1
        result.obsm["spatial"][:] = -1
        result.uns["nested"]["array"][:] = -1
        result.obs["total_counts"] = -1
        assert (adata.X != before.X).nnz == 0
        assert set(filter(None, adata.layers)) == {"other"} and "hold_out" not in adata.uns
        np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])
        np.testing.assert_array_equal(adata.uns["nested"]["array"], 0)
        pd.testing.assert_frame_equal(adata.obs, before.obs)


def pp_chosen(adata: ad.AnnData, genes) -> np.ndarray:
    if genes is None:
        return np.ones(adata.n_vars, dtype=bool)
    return adata.var[genes].to_numpy() if isinstance(genes, str) else adata.var_names.isin(genes)


class TestSchemes:
    def test_seeds_differ_and_gene_order_does_not_matter(self, slide):
        first = pp.hold_out(slide, seed=0).layers["held_out"]
        assert (first != pp.hold_out(slide, seed=1).layers["held_out"]).any()
        names = list(slide.var_names[:9])
        a = pp.hold_out(slide, genes=names).layers["held_out"]
        np.testing.assert_array_equal(a, pp.hold_out(slide, genes=names[::-1]).layers["held_out"])

    def test_global_random_state_is_not_used(self, slide):
        np.random.seed(0)
        state = np.random.get_state()[1].copy()
        pp.hold_out(slide, scheme="thinning")
        np.testing.assert_array_equal(np.random.get_state()[1], state)

    def test_entries_are_drawn_uniformly(self):
        adata = slides(x=np.ones((10, 6), dtype=np.float32))
        drawn = sum(pp.hold_out(adata, 0.25, seed=seed).layers["held_out"].astype(int) for seed in range(500))
        assert abs(drawn / 500 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 500)

    def test_thinning_is_binomial_and_its_parts_are_uncorrelated(self):
        counts = np.random.default_rng(0).poisson(20.0, size=(4000, 3)).astype(np.float32)
        adata = slides(x=counts)
        result = pp.hold_out(adata, 0.3, "thinning")
        visible, hidden = result.X, result.layers["truth"] - result.X
        np.testing.assert_array_equal(visible + hidden, counts)
        assert visible.mean() == pytest.approx(14, rel=0.02)
        assert hidden.mean() == pytest.approx(6, rel=0.02)
        assert hidden.var() == pytest.approx(6, rel=0.06)
        assert abs(np.corrcoef(visible[:, 1], hidden[:, 1])[0, 1]) < 0.06

    def test_thinning_thins_the_whole_library(self):
        adata = slides(x=np.random.default_rng(0).poisson(20.0, size=(2000, 3)).astype(np.float32))
        adata.obs["total_counts"] = adata.X.sum(axis=1) + 1000.0  # molecules of genes that are not in adata
        result = pp.hold_out(adata, 0.3, "thinning")
        library = result.obs["total_counts"].to_numpy()
        others = library - result.X.sum(axis=1)
        assert others.mean() == pytest.approx(700, rel=0.002) and others.std() == pytest.approx(np.sqrt(210), rel=0.1)
        # where only some genes are thinned, everything else stays
        result = pp.hold_out(adata, 0.3, "thinning", genes=[adata.var_names[0]])
        np.testing.assert_allclose(result.obs["total_counts"] - result.X.sum(axis=1), 1000)

    @pytest.mark.parametrize("n_blocks", [1, 3])
    def test_blocks_are_connected_regions_of_every_slide(self, n_blocks):
        from lgdist_scvi import datasets

        adata = datasets.simulated_visium(600, 20, n_samples=2, seed=0)
        result = pp.hold_out(adata, 0.2, "block", sample_key="sample", n_blocks=n_blocks)
        hidden = result.layers["held_out"].all(axis=1)
        pp.spatial_neighbors(adata, sample_key="sample")
        for name in ("slide_1", "slide_2"):
            spots = np.flatnonzero(hidden & (adata.obs["sample"] == name).to_numpy())
            assert len(spots) == 60
            graph = adata.obsp["spatial_connectivities"][spots][:, spots]
            assert 1 <= connected_components(graph, directed=False)[0] <= n_blocks
        assert connected_components(adata.obsp["spatial_connectivities"][hidden][:, hidden], directed=False)[0] >= 2

    def test_block_goes_on_elsewhere_where_a_region_ends(self):
        adata = slides(n_obs=9)
        adata.obsm["spatial"] = np.array([[i * 1.0 + 1000 * (i // 3), 0] for i in range(9)])
        result = pp.hold_out(adata, 0.8, "block", n_blocks=1)
        assert result.layers["held_out"].all(axis=1).sum() == 7


class TestNothingLeaks:
    def test_other_layers_and_raw_are_dropped_and_annotations_kept(self, slide):
        slide.layers["log"] = np.log1p(slide.X.toarray())
        slide.raw = slide.copy()
        slide.obsm["X_pca"] = np.ones((slide.n_obs, 2))
        slide.varm["PCs"] = np.ones((slide.n_vars, 2))
        slide.obsp["graph"] = sparse.eye(slide.n_obs, format="csr")
        slide.uns["_scvi_uuid"] = "1"
        result = pp.hold_out(slide)
        assert set(filter(None, result.layers)) == {"truth", "held_out"}
        assert result.raw is None
        assert set(result.obsm) == {"spatial", "X_pca"}
        assert set(result.varm) == {"PCs"} and set(result.obsp) == {"graph"}
        assert set(result.uns) == {"spatial", "hold_out"}
        assert list(result.obs) == list(slide.obs) and list(result.var) == list(slide.var)

    def test_counts_in_a_layer_hide_x_as_well(self, slide):
        slide.layers["counts"] = slide.X.copy()
        slide.X = np.log1p(slide.X.toarray())
        result = pp.hold_out(slide, layer="counts")
        assert set(filter(None, result.layers)) == {"counts", "truth", "held_out"}
        held_out = result.layers["held_out"]
        assert not dense(result.X)[held_out].any()
        assert (result.X != result.layers["counts"]).nnz == 0
        result.X.data[:] = 0
        assert result.layers["counts"].data.any()  # two matrices, not one

    @pytest.mark.parametrize("scheme", ["entry", "spot", "block"])
    def test_visible_part_does_not_depend_on_hidden_values(self, slide, scheme):
        slide.obs["total_counts"] = dense(slide.X).sum(axis=1)
        result = pp.hold_out(slide, scheme=scheme, seed=5)
        other = slide.copy()
        changed = dense(other.X)
        hidden = result.layers["held_out"] & (changed > 0)
        changed[hidden] = 977
        other.X = sparse.csr_matrix(changed)
        other.obs["total_counts"] = changed.sum(axis=1)
        again = pp.hold_out(other, scheme=scheme, seed=5)
        assert (again.X != result.X).nnz == 0
        np.testing.assert_array_equal(again.layers["held_out"], result.layers["held_out"])
        np.testing.assert_array_equal(again.obs["total_counts"], result.obs["total_counts"])

    def test_hiding_twice_keeps_only_the_second_truth(self, slide):
        once = pp.hold_out(slide, seed=0)
        twice = pp.hold_out(once, seed=1)
        assert (twice.layers["truth"] != once.X).nnz == 0
        assert twice.uns["hold_out"]["seed"] == 1

    def test_library_sizes(self, slide):
        totals = dense(slide.X).sum(axis=1)
        slide.obs["total_umi_all_genes"] = totals + 1000
        result = pp.hold_out(slide, library_keys=["total_umi_all_genes"])
        hidden = totals - dense(result.X).sum(axis=1)
        assert hidden.sum() > 0
        np.testing.assert_array_equal(result.obs["total_umi_all_genes"], totals + 1000 - hidden)
        assert "total_counts" not in result.obs
        with pytest.raises(KeyError, match="'n_umi' not found in adata.obs; available: .*library_keys"):
            pp.hold_out(slide, library_keys=["n_umi"])


class TestStorage:
    def test_views_and_backed_files(self, tmp_path, slide):
        slide.write_h5ad(tmp_path / "a.h5ad")
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        view = slide[10:90, ::2]
        for lazy, loaded in ((view, view.copy()), (backed, slide), (backed[10:90, ::2], view.copy())):
            a, b = pp.hold_out(lazy, scheme="thinning"), pp.hold_out(loaded, scheme="thinning")
            assert not a.isbacked and not a.is_view
            assert (a.X != b.X).nnz == 0
            np.testing.assert_array_equal(a.layers["truth"].toarray(), loaded.X.toarray())
        backed.file.close()

    def test_survives_writing(self, tmp_path, slide):
        result = pp.hold_out(slide)
        result.write_h5ad(tmp_path / "a.h5ad")
        read = ad.read_h5ad(tmp_path / "a.h5ad")
        assert read.uns["hold_out"]["scheme"] == "entry"
        assert read.uns["hold_out"]["fraction"] == 0.3
        assert read.layers["held_out"].dtype == bool
        np.testing.assert_array_equal(read.layers["held_out"], result.layers["held_out"])


class TestErrors:
    @pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, np.nan, "0.3", None])
    def test_fraction(self, slide, fraction):
        with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
            pp.hold_out(slide, fraction)

    def test_scheme(self, slide):
        with pytest.raises(
            ValueError, match="scheme must be one of 'entry', 'spot', 'block', 'sample', 'thinning', got 'row'"
        ):
            pp.hold_out(slide, scheme="row")

    def test_genes(self, slide):
        unknown = [f"x{i}" for i in range(7)]
        with pytest.raises(KeyError, match="7 of 8 genes are not in adata.var_names: 'x0', 'x1', .* and 2 more"):
            pp.hold_out(slide, genes=[*unknown, slide.var_names[0]])
        with pytest.raises(KeyError, match="'target_gene' not found in adata.var; available: .*pp.select_genes"):
            pp.hold_out(slide, genes="target_gene")
        with pytest.raises(ValueError, match="expected bool"):
            pp.hold_out(slide, genes="dispersion")
        slide.var["target_gene"] = False
        with pytest.raises(ValueError, match="True for no gene"):
            pp.hold_out(slide, genes="target_gene")
        with pytest.raises(ValueError, match="genes is empty"):
            pp.hold_out(slide, genes=[])

    def test_nothing_to_hide(self, slide):
        slide.X = sparse.csr_matrix(slide.shape)
        with pytest.raises(ValueError, match="all counts of the 60 genes to hide are 0"):
            pp.hold_out(slide)

    def test_samples(self, slide):
        with pytest.raises(ValueError, match="pass sample_key"):
            pp.hold_out(slide, scheme="sample")
        with pytest.raises(ValueError, match=r"two slides or more; adata.obs\['sample'\] names only one"):
            pp.hold_out(slide, scheme="sample", sample_key="sample")
        with pytest.raises(KeyError, match="'batch' not found in adata.obs"):
            pp.hold_out(slide, scheme="sample", sample_key="batch")

    def test_blocks(self, slide):
        with pytest.raises(ValueError, match="n_blocks must be a whole number"):
            pp.hold_out(slide, scheme="block", n_blocks=0)
        with pytest.raises(ValueError, match="rounds to no spot"):
            pp.hold_out(slide, 0.001, scheme="block")
        del slide.obsm["spatial"]
        with pytest.raises(KeyError, match="'spatial' not found in adata.obsm"):
            pp.hold_out(slide, scheme="block")
        pp.hold_out(slide, scheme="entry")  # needs no coordinates

    def test_library_sizes_of_other_counts(self, slide):
        slide.obs["total_counts"] = 1.0
        with pytest.raises(
            ValueError, match=r"adata.obs\['total_counts'\] is smaller than the counts hidden in \d+ of 150"
        ):
            pp.hold_out(slide)

    def test_values_and_names(self, slide):
        slide.X.data[:2] = 0.5
        with pytest.raises(ValueError, match="2 of 9,000 entries of adata.X are not whole numbers"):
            pp.hold_out(slide)
        slide.var_names = ["a"] * slide.n_vars
        with pytest.raises(ValueError, match="adata.var_names occur more than once"):
            pp.hold_out(slide)
