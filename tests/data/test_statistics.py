from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from lgdist_scvi import LGDiST, datasets
from lgdist_scvi.data import GeneStatistics, gene_statistics, set_aside_patterns
from lgdist_scvi.module.experts import FactorAnalysis
from lgdist_scvi.module.likelihood import CapturedLikelihood, PoissonLikelihood

N_COMPONENTS = 4
N_FACTORS = 3


@pytest.fixture
def masked():
    adata = datasets.simulated_visium(n_spots=90, n_genes=12, seed=0)
    adata.layers["known"] = np.random.default_rng(3).random(adata.shape) > 0.3
    return adata


def summarise(adata, patterns, compositional=True):
    LGDiST.setup_anndata(adata, mask_layer="known")
    dataset = LGDiST._get_most_recent_anndata_manager(adata, required=True).create_torch_dataset()
    return gene_statistics(dataset, patterns, PoissonLikelihood.counted_among, compositional, N_COMPONENTS)


def factors_of(statistics: GeneStatistics) -> np.ndarray:
    """Loadings that the factor analysis starts from, (n_genes, n_factors)."""
    likelihood = PoissonLikelihood(len(statistics.rate), n_latent=2, compositional=True)
    parts = (statistics.rate, statistics.value_mean, statistics.value_scale)
    likelihood.set_statistics(*map(torch.from_numpy, parts), statistics.typical_library)
    expert = FactorAnalysis(len(statistics.rate), SimpleNamespace(n_factors=N_FACTORS, n_profiles=1, n_mixtures=1))
    expert.initialise(likelihood, *statistics.some_spots)
    return expert.loadings.numpy()


def test_statistics_of_known_entries_that_are_not_set_aside(masked):
    patterns = set_aside_patterns(12, 0.2, seed=0)
    statistics = summarise(masked, patterns)
    known = masked.layers["known"]
    counts = masked.X.toarray().astype(float) * known
    library = counts.sum(axis=1, keepdims=True)
    usable = known & ~patterns[np.arange(90) % len(patterns)]
    assert usable.sum() < known.sum()
    values = np.where(usable, np.log1p(counts / library * 1e4), np.nan)
    np.testing.assert_allclose(statistics.value_mean, np.nanmean(values, axis=0), rtol=1e-4)
    np.testing.assert_allclose(statistics.value_scale, np.nanstd(values, axis=0).clip(0.1), rtol=1e-3)
    rate = (counts * usable).sum(axis=0) / (library * usable).sum(axis=0)
    # a tenth of a count is added to every gene
    pseudo = 0.2 / counts.sum()
    np.testing.assert_allclose(statistics.rate, rate / rate.sum(), rtol=0.02, atol=pseudo)
    assert statistics.rate.sum() == pytest.approx(1.0, rel=1e-5)
    assert statistics.typical_library == pytest.approx(np.median(library))


def test_a_gene_whose_known_entries_are_all_set_aside(masked):
    patterns = set_aside_patterns(12, 0.2, seed=0)
    spot = int(np.flatnonzero(patterns[np.arange(90) % len(patterns), 5])[0])
    masked.layers["known"][:, 5] = False
    masked.layers["known"][spot, 5] = True
    statistics = summarise(masked, patterns, compositional=False)
    others = np.arange(12) != 5
    # nothing is known of it: hardly expressed, with an average captured value
    assert statistics.rate[5] < statistics.rate[others].min()
    assert statistics.value_mean[others].min() < statistics.value_mean[5] < statistics.value_mean[others].max()


def test_hidden_and_set_aside_counts_do_not_enter(masked):
    """Masked entries may hold anything; of entries set aside, only the library size knows."""
    patterns = set_aside_patterns(12, 0.2, seed=0)
    first = summarise(masked, patterns)
    counts = masked.X.toarray()
    counts[~masked.layers["known"]] = 77
    masked.X = sparse.csr_matrix(counts)
    second = summarise(masked, patterns)
    for name in ("rate", "value_mean", "value_scale", "loadings", "signal"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for one, other in zip(first.some_spots, second.some_spots, strict=True):
        np.testing.assert_array_equal(one, other)
    assert factors_of(first).any()
    np.testing.assert_array_equal(factors_of(first), factors_of(second))
    assert first.typical_library == second.typical_library


def test_a_gene_without_counts_keeps_a_positive_rate(masked):
    counts = masked.X.toarray()
    counts[:, 4] = 0
    masked.X = counts
    statistics = summarise(masked, set_aside_patterns(12, 0.05, seed=0))
    assert 0 < statistics.rate[4] < 0.1 * np.median(statistics.rate)
    assert all(
        np.isfinite(getattr(statistics, name)).all() for name in ("rate", "value_mean", "value_scale", "loadings")
    )
    assert np.isfinite(factors_of(statistics)).all()
    assert (statistics.value_scale > 0).all()


def test_rates_of_a_part_of_the_genes_are_shares_of_the_library(masked):
    masked.obs["total"] = 1e4
    LGDiST.setup_anndata(masked, size_factor_key="total")
    dataset = LGDiST._get_most_recent_anndata_manager(masked, required=True).create_torch_dataset()
    patterns = set_aside_patterns(12, 0.01, seed=0)
    statistics = gene_statistics(dataset, patterns, PoissonLikelihood.counted_among, False, N_COMPONENTS)
    share = masked.X.toarray().sum(axis=0) / (1e4 * masked.n_obs)
    np.testing.assert_allclose(statistics.rate, share, rtol=0.1, atol=0.2 / (1e4 * masked.n_obs))
    assert statistics.rate.sum() < 0.5


def test_rates_of_captured_genes_are_shares_of_all_libraries(masked):
    """A gene that few spots show is rare, however large its counts are there."""
    masked = masked[:, np.asarray((masked.X > 0).sum(axis=0)).ravel() > 0].copy()
    masked.layers["known"] = masked.X.toarray() > 0
    LGDiST.setup_anndata(masked, mask_layer="known")
    dataset = LGDiST._get_most_recent_anndata_manager(masked, required=True).create_torch_dataset()
    patterns = np.zeros((10, masked.n_vars), dtype=bool)
    statistics = gene_statistics(dataset, patterns, CapturedLikelihood.counted_among, True, N_COMPONENTS)
    share = masked.X.toarray().sum(axis=0) / masked.X.sum()
    np.testing.assert_allclose(statistics.rate, share, rtol=1e-3, atol=0.2 / masked.X.sum())


def test_set_aside_patterns():
    patterns = set_aside_patterns(500, 0.1, seed=0)
    assert patterns.dtype == bool
    whole = patterns.all(axis=1)
    # among any 25 rows or so, one spot is set aside whole
    assert whole[1:25].sum() == 1 and not whole[0]
    assert np.diff(np.flatnonzero(whole)).max() < 50
    patterns = patterns[~whole]
    assert patterns.mean() == pytest.approx(0.1, abs=0.005)
    np.testing.assert_array_equal(patterns, set_aside_patterns(500, 0.1, seed=0)[~whole])
    assert (set_aside_patterns(500, 0.1, seed=0) != set_aside_patterns(500, 0.1, seed=1)).any()
    # neighbouring rows are independent
    assert (patterns[:-1] & patterns[1:]).mean() == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("seed", [0, 1])
def test_set_aside_patterns_do_not_coincide_with_a_mask_drawn_from_the_same_seed(seed):
    patterns = set_aside_patterns(50, 0.2, seed=seed)
    patterns = patterns[~patterns.all(axis=1)]
    mask = np.random.default_rng(seed).random(patterns.shape) < 0.2
    assert (patterns & mask).mean() == pytest.approx(0.04, abs=0.01)
