"""Skill measured on held-out entries, and what it is measured from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lgdist_scvi import LGDiST
from lgdist_scvi.inference import Predictor, estimate_region_effects, measure_skill
from lgdist_scvi.inference._skill import _entries, _lines


def test_gene_mean_from_scratch(trained, visible, cp10k):
    """Least squares on the visible entries: value against the logarithm of the library."""
    known, values = np.asarray(trained.adata.layers["known"]), cp10k(trained.adata)
    depth = np.log((trained.adata.X.toarray() * known).sum(axis=1).clip(1))
    dataset = trained.adata_manager.create_torch_dataset()
    intercept, slope = _lines(trained.module, dataset)["rate"]
    for gene in (0, 5, 11):
        seen = visible[:, gene]
        expected = np.polyfit(depth[seen], values[seen, gene], 1)
        # slightly shrunk
        assert slope[gene] == pytest.approx(expected[0] * seen.sum() / (seen.sum() + 10), rel=0.1, abs=0.02)
        fitted = intercept[gene] + slope[gene] * depth[seen].mean()
        assert float(fitted) == pytest.approx(values[seen, gene].mean(), rel=1e-4)


def test_bias_is_not_rewarded(trained, monkeypatch):
    """Gene means have no skill, and no factor on them has any."""
    module, predictor = trained.module, Predictor(trained.module, trained.adata_manager.create_torch_dataset())
    gene_rate, scores = module.likelihood.gene_rate, {}
    for factor in (0.4, 1.0, 2.5):
        monkeypatch.setattr(
            module, "decode", lambda z, condition, factor=factor: (factor * gene_rate).expand(len(z), -1).clone()
        )
        table = measure_skill(predictor)["rate"]
        scores[factor] = 1 - (table["n"] * table["mse_model"]).sum() / (table["n"] * table["mse: gene mean"]).sum()
    assert scores[1.0] < 0.02
    assert scores[0.4] < scores[1.0]
    assert scores[2.5] < scores[1.0]


def test_predictions_never_see_what_is_scored(trained, aside):
    """Other counts in the set-aside entries, the same prediction for them."""
    zeros = torch.zeros(trained.adata.n_vars)
    lines = {"rate": (zeros, zeros), "captured": (zeros, zeros)}

    @torch.inference_mode()
    def entries_of(adata) -> dict[str, torch.Tensor]:
        LGDiST.setup_anndata(adata, mask_layer="known")
        manager = LGDiST._get_most_recent_anndata_manager(adata, required=True)
        predictor = Predictor(trained.module, manager.create_torch_dataset())
        effects = estimate_region_effects(predictor, "set_aside")
        assert effects is not None
        predictor = predictor.with_region_effects(effects)
        parts = [_entries(trained.module, batch, lines, True) for _, batch in predictor.batches(batch_size=adata.n_obs)]
        return parts[0]

    other = trained.adata.copy()
    counts = other.X.toarray()
    counts[aside] = 7 - np.minimum(counts[aside], 7)
    other.X = counts
    before, after = entries_of(trained.adata.copy()), entries_of(other)
    torch.testing.assert_close(before["predicted"] / before["exposure"], after["predicted"] / after["exposure"])
    # values are relative to the library, which holds all counts: their deviations may differ
    for name in ("rate/number", "molecules"):
        torch.testing.assert_close(before[name], after[name])
