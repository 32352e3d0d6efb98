"""Layers that a redraw must leave as they are: ``python tests/golden/compute.py before.npz``, and ``after.npz`` to compare bit by bit.

Uses the public interface alone, so that it runs on any version.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import scvi
import torch
from anndata import AnnData, read_h5ad

from lgdist_scvi import LGDiST, datasets, pp

SIZES = {
    "n_profiles": 10, "n_mixtures": 2, "n_latent": 8, "n_hidden": 32, "n_layers": 1, "n_heads": 2, "n_denoiser_hidden": 32,
    "n_denoiser_layers": 1, "n_denoiser_heads": 2, "n_timesteps": 100,
}  # fmt: skip
TRAIN = {"accelerator": "cpu", "enable_progress_bar": False}


def simulated(seed: int, n_samples: int = 2) -> AnnData:
    """Slides with a mask: 15 % of the entries, and all of some spots."""
    adata = datasets.simulated_visium(n_spots=110, n_genes=40, n_samples=n_samples, seed=seed)
    mask = np.random.default_rng(1).random(adata.shape) > 0.15
    mask[[17, 60, 61]] = False
    adata.layers["known"] = mask
    return adata


def real(file: Path) -> AnnData:
    """A part of a real slide, as a user prepares it."""
    adata = read_h5ad(file)
    xy = adata.obsm["spatial"]
    middle = np.abs(xy - np.median(xy, axis=0)).max(axis=1)
    adata = adata[np.sort(np.argsort(middle, kind="stable")[:250])].copy()
    pp.select_genes(adata, n_targets=30, n_genes=60, min_target_detection=0.1)
    return adata[:, adata.var["target_gene"] | adata.var["context_gene"]].copy()


def answers(name: str, model: LGDiST, estimands: tuple[str, ...], other: AnnData | None) -> dict[str, np.ndarray]:
    """Answers to all questions."""
    out = {}
    model.complete(silent=True)
    adata = model.adata
    for suffix in ("", "_std", "_lower", "_upper", "_provenance"):
        out[f"{name}/completed{suffix}"] = np.asarray(adata.layers[f"completed{suffix}"])
    out[f"{name}/skill"] = adata.var["completed_skill"].to_numpy()
    out[f"{name}/latent"] = model.get_latent_representation()
    for estimand in estimands:
        values, std = model.get_completed_expression(
            estimand=estimand, observed="model", return_std=True, return_numpy=True, n_samples=3, seed=1
        )
        out |= {f"{name}/{estimand}": values, f"{name}/{estimand}_std": std}
        lower, upper = model.get_prediction_interval(0.8, estimand=estimand, observed="model", return_numpy=True)
        out |= {f"{name}/{estimand}_lower": lower, f"{name}/{estimand}_upper": upper}
    if "rate" in estimands:
        out[f"{name}/normalized"] = model.get_normalized_expression(library_size="latent", return_numpy=True)
    out[f"{name}/predictive"] = model.posterior_predictive_sample(n_samples=2, indices=range(30)).todense()
    out[f"{name}/skill_neighbors"] = model.skill_table(neighbors_only=True)["skill"].to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, overwrite=True)
        loaded = LGDiST.load(folder, adata=adata.copy(), accelerator="cpu")
    out[f"{name}/loaded"] = loaded.get_completed_expression(observed="model", return_numpy=True)
    if other is not None:
        out[f"{name}/transfer"] = model.get_completed_expression(other, observed="model", return_numpy=True)
    return out


def fit(adata: AnnData, setup: dict, train: dict | None = None, **kwargs) -> LGDiST:
    scvi.settings.seed = 0
    LGDiST.setup_anndata(adata, **setup)
    model = LGDiST(adata, **SIZES, **kwargs)
    model.train(max_epochs=3, **TRAIN, **(train or {}))
    return model


def compute(data: Path | None = None) -> dict[str, np.ndarray]:
    """All golden layers; those of real slides if their folder is given."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    both, captured = ("rate", "captured"), ("captured",)
    setup = {"mask_layer": "known", "sample_key": "sample"}
    out = answers("nb", fit(simulated(0), setup), both, simulated(2, 1))
    zeros_missing, other = simulated(0), simulated(2, 1)
    for adata in (zeros_missing, other):
        adata.layers["known"] &= adata.X.toarray() > 0
    out |= answers("normal", fit(zeros_missing.copy(), setup), captured, other.copy())
    out |= answers("normal two rounds", fit(zeros_missing, setup, {"n_rounds": 2}), captured, other)
    out |= answers("nb two rounds", fit(simulated(0), setup, {"n_rounds": 2}), both, None)
    plain = {"sample_key": "sample"}
    out |= answers("poisson, neighborhood", fit(
        simulated(3), plain, gene_likelihood="poisson", conditioning="neighborhood"), both, None)  # fmt: skip
    if data is not None:
        sized = {"size_factor_key": "total_counts"}
        out |= answers("muscle", fit(real(data / "mouse_muscle_Vis7B_5dpi.h5ad"), sized), both, None)
        adata = real(data / "mouse_hippocampus_slideseqv2_subset.h5ad")
        pp.observed_mask(adata)
        out |= answers("hippocampus", fit(adata, sized | {"mask_layer": "observed"}), captured, None)
    return out


if __name__ == "__main__":
    folder = Path(os.environ.get("LGDIST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    layers = compute(folder if folder.is_dir() else None)
    if len(sys.argv) == 3:  # compare with the second file
        before = np.load(sys.argv[2])
        changed = [name for name in before if not np.array_equal(before[name], layers[name], equal_nan=True)]
        for name in changed:
            difference = np.abs(before[name].astype(float) - layers[name].astype(float))
            print(f"{name}: {(difference > 0).mean():.2%} of the values differ, by {np.nanmax(difference):.3g} at most")
        print(f"{len(before.files) - len(changed)} of {len(before.files)} layers are the same bit by bit")
    np.savez_compressed(sys.argv[1], **layers)
