"""Layers that a change of structure must leave as they are.

``python tests/golden/compute.py before.npz`` writes them, and ``python tests/golden/compute.py after.npz before.npz`` compares them
bit by bit. ``python tests/golden/compute.py --remake`` writes anew what `test_golden.py` compares with, after a change that is meant.
Uses the public interface alone, so that it runs on any version.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
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


def with_zeros_missing(adata: AnnData) -> AnnData:
    """The same slides with every zero called missing."""
    adata.layers["known"] &= adata.X.toarray() > 0
    return adata


def of_simulated(
    name: str, estimands: tuple[str, ...], zeros_missing: bool = False, transfer: bool = False, n_rounds: int = 1
) -> dict[str, np.ndarray]:
    prepare = with_zeros_missing if zeros_missing else lambda adata: adata
    model = fit(prepare(simulated(0)), {"mask_layer": "known", "sample_key": "sample"}, {"n_rounds": n_rounds})
    return answers(name, model, estimands, prepare(simulated(2, 1)) if transfer else None)


def of_poisson(name: str) -> dict[str, np.ndarray]:
    model = fit(simulated(3), {"sample_key": "sample"}, gene_likelihood="poisson", conditioning="neighborhood")
    return answers(name, model, BOTH, None)


def of_muscle(name: str, data: Path) -> dict[str, np.ndarray]:
    model = fit(real(data / "mouse_muscle_Vis7B_5dpi.h5ad"), {"size_factor_key": "total_counts"})
    return answers(name, model, BOTH, None)


def of_hippocampus(name: str, data: Path) -> dict[str, np.ndarray]:
    adata = real(data / "mouse_hippocampus_slideseqv2_subset.h5ad")
    pp.observed_mask(adata)
    model = fit(adata, {"size_factor_key": "total_counts", "mask_layer": "observed"})
    return answers(name, model, CAPTURED, None)


BOTH, CAPTURED = ("rate", "captured"), ("captured",)
SIMULATED: dict[str, Callable[[str], dict[str, np.ndarray]]] = {
    "nb": partial(of_simulated, estimands=BOTH, transfer=True),
    "normal": partial(of_simulated, estimands=CAPTURED, zeros_missing=True, transfer=True),
    "normal two rounds": partial(of_simulated, estimands=CAPTURED, zeros_missing=True, transfer=True, n_rounds=2),
    "nb two rounds": partial(of_simulated, estimands=BOTH, n_rounds=2),
    "poisson, neighborhood": of_poisson,
}
REAL = {"muscle": of_muscle, "hippocampus": of_hippocampus}

EXPECTED = Path(__file__).with_name("expected.json")
N_ENTRIES = 20


def summary(layer: np.ndarray) -> dict[str, list | float]:
    """What is kept of a layer: shape, mean, standard deviation, and entries at places that are always the same."""
    values = layer.astype(float).ravel()
    places = np.random.default_rng(0).choice(values.size, min(N_ENTRIES, values.size), replace=False)
    kept = {"mean": np.nanmean(values), "sd": np.nanstd(values), "entries": values[places]}
    return {"shape": list(layer.shape)} | {name: np.round(value, 6).tolist() for name, value in kept.items()}


def compute(data: Path | None = None) -> dict[str, np.ndarray]:
    """All layers; those of real slides if their folder is given."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    layers = {}
    for name, case in SIMULATED.items():
        layers |= case(name)
    for name, case in (REAL if data is not None else {}).items():
        layers |= case(name, data)
    return layers


def compare(before: np.lib.npyio.NpzFile, layers: dict[str, np.ndarray]) -> None:
    """Tell which layers differ in any bit."""
    changed = [name for name in before if not np.array_equal(before[name], layers[name], equal_nan=True)]
    for name in changed:
        difference = np.abs(before[name].astype(float) - layers[name].astype(float))
        print(f"{name}: {(difference > 0).mean():.2%} of the values differ, by {np.nanmax(difference):.3g} at most")
    print(f"{len(before.files) - len(changed)} of {len(before.files)} layers are the same bit by bit")


if __name__ == "__main__":
    if sys.argv[1] == "--remake":
        kept = {name: summary(layer) for name, layer in compute().items()}
        EXPECTED.write_text(
            "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in kept.items()) + "\n}\n"
        )
    else:
        folder = Path(os.environ.get("LGDIST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
        layers = compute(folder if folder.is_dir() else None)
        if len(sys.argv) == 3:
            compare(np.load(sys.argv[2]), layers)
        np.savez_compressed(sys.argv[1], **layers)
