from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from lgdist_scvi import datasets, pp


@pytest.fixture(scope="module")
def tissue() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=1500, n_genes=120, n_samples=2, seed=4)


def test_layout(tissue):
    assert tissue.shape == (1500, 120)
    assert type(tissue.X) is sparse.csr_matrix and tissue.X.dtype == np.float32
    assert tissue.obs["sample"].value_counts().to_dict() == {"slide_1": 750, "slide_2": 750}
    assert tissue.obs_names.is_unique and tissue.var_names.is_unique
    assert tissue.obs["domain"].nunique() > 1
    assert set(tissue.var["pattern"].str.split("_").str[0]) == {"programme", "domain", "none"}
    assert set(tissue.uns["spatial"]) == {"slide_1", "slide_2"}


def test_hexagonal_lattice_in_pixels(tissue):
    pp.spatial_neighbors(tissue, sample_key="sample")
    assert set(tissue.uns["spatial_neighbors"]["params"]["geometry"]) == {"hexagonal"}
    np.testing.assert_allclose(tissue.obsp["spatial_distances"].data, 100, rtol=1e-5)
    assert np.mean(np.diff(tissue.obsp["spatial_connectivities"].indptr) == 6) > 0.8


def test_rates_are_known(tissue):
    rate = tissue.layers["rate"]
    assert rate.dtype == np.float32
    np.testing.assert_allclose(rate.sum(axis=1), 1, rtol=1e-5)
    # negative binomial with the stated mean and dispersion: standardised residuals have mean 0 and variance 1
    mean = tissue.obs["library_size"].to_numpy()[:, None] * rate.astype(np.float64)
    variance = mean + mean**2 / tissue.var["dispersion"].to_numpy()
    residuals = (tissue.X.toarray() - mean) / np.sqrt(variance)
    assert abs(residuals.mean()) < 4 / np.sqrt(residuals.size)
    assert (residuals**2).mean() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(residuals[:, 0], residuals[:, 1])[0, 1]) < 0.1


@pytest.mark.parametrize(("n_spots", "n_genes"), [(400, 50), (1000, 200), (300, 1024)])
def test_zeros_are_as_frequent_as_on_real_slides(n_spots, n_genes):
    adata = datasets.simulated_visium(n_spots, n_genes)
    assert 0.6 < 1 - adata.X.nnz / (n_spots * n_genes) < 0.9


def test_patterns_are_what_they_say(tissue):
    pp.spatial_neighbors(tissue, sample_key="sample")
    graph = tissue.obsp["spatial_connectivities"]
    expected = np.log(tissue.layers["rate"].astype(np.float64))
    expected -= expected.mean(axis=0)
    means = graph @ expected / np.maximum(np.diff(graph.indptr), 1)[:, None]
    moran = (expected * means).sum(axis=0) / np.maximum((expected**2).sum(axis=0), 1e-6)
    kind = tissue.var["pattern"].str.split("_").str[0]
    assert np.median(moran[kind == "programme"]) > 0.7
    assert np.median(moran[kind == "domain"]) > 0.5
    assert min(moran[kind == "programme"].min(), moran[kind == "domain"].min()) > 0.1
    assert np.abs(moran[kind == "none"]).max() < 0.1
    # a marker is highest where it should be
    for gene in np.flatnonzero(kind == "domain"):
        here = (tissue.obs["domain"] == tissue.var["pattern"].iloc[gene]).to_numpy()
        if here.any():
            assert expected[here, gene].mean() > expected[~here, gene].mean() + 0.3


def test_seed():
    a, b = datasets.simulated_visium(200, 30, seed=1), datasets.simulated_visium(200, 30, seed=1)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    c = datasets.simulated_visium(200, 30, seed=2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    np.testing.assert_array_equal(a.layers["rate"], b.layers["rate"])
    np.testing.assert_array_equal(
        a.uns["spatial"]["slide_1"]["images"]["hires"], b.uns["spatial"]["slide_1"]["images"]["hires"]
    )
    assert (a.X != c.X).nnz > 0


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 2, 3), (7, 5, 2)])
def test_smallest(size):
    adata = datasets.simulated_visium(*size)
    assert adata.shape == size[:2]
    assert adata.obs["sample"].nunique() == size[2]


def test_drawn_by_squidpy_and_scanpy(tissue, tmp_path):
    import matplotlib.pyplot as plt
    import scanpy as sc
    import squidpy as sq

    tissue.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    sq.pl.spatial_scatter(read, color=["domain", "gene_001"], library_key="sample", layer="rate")
    assert len(plt.gcf().axes[0].images) == 1  # the tissue underneath
    plt.close("all")
    one = read[read.obs["sample"] == "slide_1"].copy()
    with pytest.warns(FutureWarning, match="spatial_scatter"):
        sc.pl.spatial(one, color="gene_001", library_id="slide_1", show=False)
    image = plt.gcf().axes[0].images[0].get_array()
    assert image.shape[2] == 3
    plt.close("all")
    # spots lie on the tissue, which is darker than the glass
    library = read.uns["spatial"]["slide_1"]
    x, y = (one.obsm["spatial"] * library["scalefactors"]["tissue_hires_scalef"]).astype(int).T
    stained = library["images"]["hires"].mean(axis=2)
    assert stained[y, x].max() < 230 < stained[0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_spots": 0}, "n_spots must be a whole number of at least 1, got 0"),
        ({"n_genes": 2.5}, "n_genes must be a whole number"),
        ({"n_domains": True}, "n_domains must be a whole number"),
        ({"n_spots": 3, "n_samples": 4}, "n_samples=4 slides need at least as many spots, got n_spots=3"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.simulated_visium(**arguments)
