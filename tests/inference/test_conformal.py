"""Split conformal calibration, in strata of genes."""

from __future__ import annotations

import numpy as np
import pytest

from lgdist_scvi.inference import conformal_quantiles, expression_strata, fit_intervals, nested_strata

LEVELS = (0.5, 0.8, 0.9, 0.95)


def test_conformal_quantiles_have_the_finite_sample_correction():
    score = np.random.default_rng(0).permutation(
        9.0 + np.arange(9)
    )  # 9 scores cut the line into 10 equally likely parts
    np.testing.assert_array_equal(conformal_quantiles(score, np.array([0.1, 0.45, 0.5, 0.9])), [9, 13, 13, 17])
    assert conformal_quantiles(score, np.array([0.91]))[0] > 1e5
    assert conformal_quantiles(score[:0], np.array([0.5]))[0] > 1e5


def test_calibration_covers_new_entries_of_every_stratum():
    """Genes differ in how badly they are predicted, and half of them have few entries."""
    rng = np.random.default_rng(0)
    n_genes = 60
    rate, badness = rng.random(n_genes), np.exp(rng.normal(0, 0.7, n_genes))

    def entries(n):
        gene = rng.integers(n_genes, size=n)
        gene = np.where((gene % 2 == 0) & (rng.random(n) < 0.8), np.minimum(gene + 1, n_genes - 1), gene)
        return {"rate": (np.abs(rng.normal(size=n)) * badness[gene], gene, rng.integers(100, size=n))}

    calibration = fit_intervals(entries(40_000), rate, rng.random(n_genes))
    assert sum(calibration.n_entries["rate"]) == 40_000
    assert calibration.stratum["rate"].max() > 14
    deviation, gene, _ = entries(200_000)["rate"]
    third = expression_strata(rate)
    for row, level in zip(calibration.coverage["rate"], LEVELS, strict=True):
        inside = deviation <= calibration.reach("rate", level)[gene]
        found = [inside.mean(), *(inside[third[gene] == t].mean() for t in range(3))]
        np.testing.assert_allclose(found, level, atol=0.02)
        np.testing.assert_allclose(row, level, atol=0.02)


def test_levels_near_one_are_calibrated_where_entries_allow_it():
    deviation = np.abs(np.random.default_rng(0).normal(size=150_000))
    gene = np.arange(150_000) % 3
    calibration = fit_intervals({"rate": (deviation, gene, gene)}, np.arange(3.0), np.ones(3))
    for level in (0.997, 0.9985, 0.9995):
        found = (deviation <= calibration.reach("rate", level)[gene]).mean()
        assert found == pytest.approx(level, abs=2e-4)


def test_genes_with_much_and_with_little_signal_are_calibrated_apart():
    """Of genes of like expression, those that vary over the tissue are predicted worse, or better, than the model claims."""
    rng = np.random.default_rng(0)
    n_genes = 300
    rate, varies = rng.random(n_genes), rng.random(n_genes) < 0.5
    badness = np.where(varies, 2.0, 1.0)

    def entries(n):
        gene = rng.integers(n_genes, size=n)
        return np.abs(rng.normal(size=n)) * badness[gene], gene

    deviation, gene = entries(30_000)
    calibration = fit_intervals({"rate": (deviation, gene, gene)}, rate, varies + 0.1 * rng.random(n_genes))
    deviation, gene = entries(100_000)
    for level in LEVELS:
        inside = deviation <= calibration.reach("rate", level)[gene]
        # where one group of genes has more of one kind than of the other, some of them are judged with the other kind
        assert inside[varies[gene]].mean() == pytest.approx(level, abs=0.06)
        assert inside[~varies[gene]].mean() == pytest.approx(level, abs=0.06)
        assert inside.mean() == pytest.approx(level, abs=0.01)


def test_strata_are_parts_of_thirds():
    rng, rate = np.random.default_rng(0), np.random.default_rng(0).random(100)
    signal = rng.random(100)
    for n_entries, expected in ((0, 3), (4_000, 12), (1_000_000, 99)):
        stratum = nested_strata(rate, signal, rng.integers(100, size=n_entries))
        assert abs(stratum.max() + 1 - expected) <= 3
        np.testing.assert_array_equal(np.unique(stratum), np.arange(stratum.max() + 1))
        for third in range(2):
            below, above = (stratum[expression_strata(rate) == t] for t in (third, third + 1))
            assert below.max() < above.min()
    assert nested_strata(rate[:4], signal[:4], np.zeros(10_000, dtype=int)).max() == 2
    # genes that do not differ in signal are cut by expression alone
    stratum = nested_strata(rate, np.ones(100), rng.integers(100, size=10_000))
    assert (np.diff(stratum[np.argsort(rate)]) >= 0).all()


def test_strata_hold_equal_numbers_of_entries_not_of_genes():
    """The few genes that make up most captured values are not judged by each other."""
    rate, signal = np.arange(90.0), np.random.default_rng(1).random(90)
    n_entries = np.repeat([10, 600], [80, 10])
    stratum = nested_strata(rate, signal, np.repeat(np.arange(90), n_entries))
    assert len(set(stratum[80:])) == 10
    assert len(set(stratum[:80])) <= 4
    # no stratum is left with too few for high levels
    n_entries = np.random.default_rng(0).choice([5, 490, 700], 90)
    held = np.bincount(nested_strata(rate, signal, np.repeat(np.arange(90), n_entries)), weights=n_entries)
    assert held.min() >= 250
