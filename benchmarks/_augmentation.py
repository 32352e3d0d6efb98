"""What synthetic pairs are worth: predictors trained on few real pairs, beside them on copies of these, or on generated patches.

Genes, expected rates (LGDiST), adapter and predictors see the chosen spots of the other sections alone, and the central model
tiles of these sections without counts. Copies are the same patches, turned, mirrored and stained otherwise: as many, of the same
spots, and used in the same way. All patches have 64 pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch

from benchmarks import _generation, _image_peers, _sections
from benchmarks._generation import Budget
from benchmarks._shared import peak_memory
from lgdist_scvi import C2LST, Stem
from lgdist_scvi.module.stem._choice import certain_choice  # noqa: PLC2701  the same choice as Stem's
from lgdist_scvi.pp._encoders import dihedral  # noqa: PLC2701

N_PAIRS = (25, 100, None)  # None: all
PREDICTORS = ("ridge", "stem")
EXTRA = ("real", "copies", "synthetic")
_ALWAYS = (
    "ridge_copies_always",
    "ridge_synthetic_always",
)  # with the weight of real ones, whatever hold-outs say of it
METHODS = (*(f"{predictor}_{extra}" for predictor in PREDICTORS for extra in EXTRA), *_ALWAYS)
STAIN_JITTER = 0.2  # of haematoxylin and eosin, each
_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
_CENTRAL_SEED = 0  # one central model does for all draws of pairs


@dataclass(frozen=True)
class AugmentationBudget:
    """How much is trained and generated, beside :class:`~benchmarks._generation.Budget`."""

    n_synthetic: int = 200
    n_adapter_steps: int = 200


@dataclass(frozen=True)
class Cell:
    """A held-out section, a draw of real pairs of the others (all: ``None``), and how much is trained and generated."""

    path: Path
    section: str
    cache: Path
    seed: int
    n_pairs: int | None
    budget: Budget
    augmentation: AugmentationBudget
    predictors: tuple[str, ...] = PREDICTORS


@dataclass
class Extra:
    """Further patches for the training spots.

    Attributes
    ----------
    spot
        Row of the spot that each is for, (n,).
    features
        Of each encoder, (n, d), standardised among those of the same section.
    """

    spot: np.ndarray
    features: dict[str, np.ndarray]

    @property
    def share(self) -> np.ndarray:
        """1 over the number of patches of the same spot, (n,)."""
        return 1.0 / np.bincount(self.spot)[self.spot]


def measure(cell: Cell) -> list[dict]:
    """Rows of a held-out section and a number of real pairs, one for each predictor and each kind of further patches."""
    data, extras, cost = prepared(cell)
    rows = []
    for predict in (one for one in (ridge, stem) if one.__name__ in cell.predictors):
        found: dict[str, tuple[np.ndarray, float]] = {}
        for kind in reversed(EXTRA):
            start = time.perf_counter()
            unused = next((answer for answer in found.values() if answer[1] == 0), None)
            # without a weight, further patches leave no trace
            found[kind] = unused if kind == "real" and unused else predict(data, extras.get(kind), cell.seed)
            row = {"method": f"{predict.__name__}_{kind}", "n_spots": data.training.n_obs, "weight": found[kind][1]}
            row |= {"seconds": round(time.perf_counter() - start, 2), "memory_mib": peak_memory(), **cost}
            rows.append(row | data.score(found[kind][0]))
    for name in _ALWAYS if "ridge" in cell.predictors else ():
        start = time.perf_counter()
        answer, weight = ridge(data, extras[name.split("_")[1]], cell.seed, (1.0,))
        row = {"method": name, "n_spots": data.training.n_obs, "weight": weight, "memory_mib": peak_memory()}
        rows.append(row | {"seconds": round(time.perf_counter() - start, 2)} | cost | data.score(answer))
    return rows


def prepared(cell: Cell) -> tuple[_sections.Sections, dict[str, Extra], dict[str, float]]:
    """Chosen spots with expected rates and features, further patches for them, and what these cost."""
    path, section, cache, seed, n_pairs = cell.path, cell.section, cell.cache, cell.seed, cell.n_pairs
    adata = _generation.data_of(path, section, cache)
    features = _features(path, cache, adata)
    samples = adata.obs["sample"].to_numpy(dtype=str)
    out, scored = samples == section, adata.var["scored"].to_numpy()
    obsm = {"spatial": adata.obsm["spatial"], "patches": adata.obsm["patches"]}
    obsm |= {key: _sections._standardized(values, samples) for key, values in features.items()}
    shown = ad.AnnData(adata.X, obs=adata.obs, var=adata.var, obsm=obsm, obsp=dict(adata.obsp))
    training = shown[~out].copy()
    if n_pairs is not None:
        chosen = np.random.default_rng(seed).choice(training.n_obs, min(n_pairs, training.n_obs), replace=False)
        training = training[np.sort(chosen)].copy()
    made = _made(training, cell)
    training.layers["completed"] = made["completed"]
    extras = {
        kind: Extra(made["spot"], {key: made[f"{kind} {key}"] for key in _sections.ENCODERS})
        for kind in ("synthetic", "copies")
    }
    cost = {name: float(value) for name, value in made.items() if name.startswith("seconds")}
    held_out = shown[out].copy()
    held_out.X = None
    data = _sections.Sections(
        training,
        held_out,
        scored,
        adata[out].X[:, scored].astype(np.float64),
        adata.obs["total_counts"].to_numpy(float)[out],
    )
    return data, extras, cost


def _made(training: ad.AnnData, cell: Cell) -> dict[str, np.ndarray]:
    """Expected rates of training spots, spot and features of further patches, and what these cost; made once."""
    path, section, cache, seed, n_pairs = cell.path, cell.section, cell.cache, cell.seed, cell.n_pairs
    sizes = (
        f"{cell.augmentation.n_synthetic}of{cell.augmentation.n_adapter_steps}steps_{cell.budget.n_sampling_steps}steps"
    )
    stored = _generation.folder_of(section, cache, _CENTRAL_SEED, cell.budget) / (
        f"pairs_{n_pairs or 'all'}_seed{seed}_{sizes}_guidance{cell.budget.guidance_scale:g}.npz"
    )
    if not stored.exists():
        start = time.perf_counter()
        if n_pairs is None:
            completed = ad.read_h5ad(_sections.prepare(path, section, cache, seed))[
                training.obs_names, training.var_names
            ]
            training.layers["completed"] = np.asarray(completed.layers["completed"])
        else:
            training.layers["completed"] = _sections._complete(training.copy(), seed)
        found = {"completed": training.layers["completed"], "seconds_completion": time.perf_counter() - start}
        pairs, cost = _pairs(training, cell)
        found["spot"] = spot = training.obs_names.get_indexer(pairs.obs["source"])
        patches = {
            "synthetic": pairs.obsm["patches"],
            "copies": copies(training.obsm["patches"][spot], np.random.default_rng(seed)),
        }
        of_spot = training.obs["sample"].to_numpy(dtype=str)[spot]
        for kind, those in patches.items():
            for key, values in _generation.encoded(those).items():
                found[f"{kind} {key}"] = _sections._standardized(values, of_spot)
        unfinished = stored.with_suffix(".partial.npz")
        np.savez(unfinished, **found, **cost)
        unfinished.replace(stored)
    with np.load(stored) as file:
        return dict(file)


def _features(path: Path, cache: Path, adata: ad.AnnData) -> dict[str, np.ndarray]:
    """Features of the spots' patches of 64 pixels, (n_obs, d) each, made once."""
    stored = cache / f"features{_generation.SIZE}_{path.stem}.npz"
    if not stored.exists():
        unfinished = stored.with_suffix(".partial.npz")
        np.savez(unfinished, spots=adata.obs_names.to_numpy(dtype=str), **_generation.encoded(adata.obsm["patches"]))
        unfinished.replace(stored)
    with np.load(stored) as file:
        place = pd.Index(file["spots"]).get_indexer(adata.obs_names)
        return {key: file[key][place].astype(np.float32) for key in _sections.ENCODERS}


def _pairs(training: ad.AnnData, cell: Cell) -> tuple[ad.AnnData, dict[str, float]]:
    """Synthetic pairs of an adapter that saw the training spots alone."""
    import scvi

    seed, budget = cell.seed, cell.budget
    central = _generation.folder_of(cell.section, cell.cache, _CENTRAL_SEED, budget) / "central"
    if not central.exists():
        _generation.train(cell.path, cell.section, cell.cache, _CENTRAL_SEED, budget)
    start = time.perf_counter()
    scvi.settings.seed = seed
    keys = {"size_factor_key": "total_counts", "sample_key": "sample", "expression_layer": "completed"}
    C2LST.setup_anndata(training, "patches", **keys)
    model = C2LST(training, central=central)
    n_epochs = -(-cell.augmentation.n_adapter_steps * _generation.BATCH // training.n_obs)
    model.train(n_epochs, batch_size=_generation.BATCH, accelerator="cpu", enable_progress_bar=False)
    trained = time.perf_counter()
    how = {"guidance_scale": budget.guidance_scale, "n_steps": budget.n_sampling_steps}
    pairs = model.synthetic_pairs(cell.augmentation.n_synthetic, seed=seed, **how)
    return pairs, {"seconds_adapter": trained - start, "seconds_generation": time.perf_counter() - trained}


def copies(patches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn or mirror each patch at random, and change its stains, uint8 (n, size, size, 3)."""
    from skimage.color import hed2rgb, rgb2hed

    turned = np.stack([dihedral(patch[None])[rng.integers(8)][0] for patch in patches])
    stains = rgb2hed(turned)
    stains[..., :2] *= rng.uniform(1 - STAIN_JITTER, 1 + STAIN_JITTER, (len(patches), 1, 1, 2))
    return (hed2rgb(stains) * 255).round().clip(0, 255).astype(np.uint8)


def ridge(
    data: _sections.Sections, extra: Extra | None, seed: int, weights: Sequence[float] = _WEIGHTS
) -> tuple[np.ndarray, float]:
    """Ridge on own patches; penalty, part of the gene means and weight of further patches are chosen on inner sections.

    Axes are those of the patches that are fitted on: of few spots those of all would tell an inner section from no other, and choose
    a penalty that is far too small for a new one.
    """
    parts = [data.training, data.held_out] + ([] if extra is None else [ad.AnnData(obsm=extra.features)])
    together = {key: np.vstack([part.obsm[key] for part in parts]) for key in _sections.ENCODERS}
    n, n_asked = data.training.n_obs, data.held_out.n_obs
    y = data.training.layers["completed"][:, data.scored].astype(np.float64)
    weights, spots = (weights if extra is not None else (0.0,)), np.arange(n)

    def design(rows: np.ndarray) -> list[np.ndarray]:
        """Design of training spots, held-out spots and further patches."""
        whole = replace(data, training=data.training[rows], held_out=ad.AnnData(obsm=together))
        return np.split(_image_peers.design(whole, tuple(_sections.ENCODERS))[1], [n, n + n_asked])

    def fitted(
        rows: np.ndarray, designs: Sequence[np.ndarray], weight: float, penalties: Sequence[float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rates of all training spots and of the held-out ones, for each penalty."""
        x, asked, further = designs
        images, of_spot, size = x[rows], spots[rows], np.ones(rows.sum())
        if weight > 0:
            seen = rows[extra.spot]
            images = np.vstack([images, further[seen]])
            of_spot = np.concatenate([of_spot, extra.spot[seen]])
            size = np.concatenate([size, weight * extra.share[seen]])
        center, mean = np.average(images, 0, size), np.average(y[of_spot], 0, size)
        part = (images - center) * size[:, None]
        values, axes = np.linalg.eigh(part.T @ (images - center))
        moment = axes.T @ (part.T @ (y[of_spot] - mean))
        for penalty in penalties:
            slopes = axes @ (moment / (np.maximum(values, 0) + penalty)[:, None])
            yield tuple(_image_peers._rate((one - center) @ slopes + mean) for one in (x, asked))

    penalties, blends = _image_peers._PENALTIES, np.array(_image_peers._BLENDS)
    losses = np.zeros((len(weights), len(penalties), len(blends), n))
    for name in np.unique(data.section):
        rows = data.section != name
        mean, library, designs = _image_peers._gene_mean(data, rows), data.library[~rows, None], design(rows)
        for i, weight in enumerate(weights):
            for j, (rates, _) in enumerate(fitted(rows, designs, weight, penalties)):
                factor, highest = _image_peers._to_means(data, rates, rows), _image_peers._highest(data, rows)
                rate = np.minimum(rates[~rows] * factor, highest)
                for k, blend in enumerate(blends):
                    expected = library * np.maximum((1 - blend) * rate + blend * mean, 1e-12)
                    losses[i, j, k, ~rows] = (expected - data.counts[~rows] * np.log(expected)).sum(axis=1)
    best = losses.sum(axis=3).reshape(len(weights), -1).argmin(axis=1)
    of_weight = losses.reshape(len(weights), -1, n)[np.arange(len(weights)), best]
    weight = certain_choice(torch.from_numpy(of_weight), weights[1:])[0] if len(weights) > 1 else weights[0]
    j, k = np.unravel_index(best[weights.index(weight)], losses.shape[1:3])
    everything = np.ones(n, dtype=bool)
    ((rates, answer),) = fitted(everything, design(everything), weight, [penalties[j]])
    factor, highest = _image_peers._to_means(data, rates, everything), _image_peers._highest(data, everything)
    rate = np.minimum(answer * factor, highest)
    return (1 - blends[k]) * rate + blends[k] * _image_peers._gene_mean(data, everything), weight


def stem(data: _sections.Sections, extra: Extra | None, seed: int) -> tuple[np.ndarray, float]:
    """Networks and expert of Stem, which see the neighbouring patches as well; without the diffusion over them."""
    import scvi

    scvi.settings.seed = seed
    training, held_out, encoders = data.training.copy(), data.held_out.copy(), tuple(_sections.ENCODERS)
    for adata in (training, held_out):
        adata.obsm["X_both"] = np.hstack([adata.obsm[key] for key in encoders])
        adata.uns["X_both"] = {"blocks": [adata.obsm[key].shape[1] for key in encoders]}
    pairs = None
    if extra is not None:
        pairs = ad.AnnData(obsm={"X_both": np.hstack([extra.features[key] for key in encoders]).astype(np.float32)})
        pairs.uns["X_both"] = training.uns["X_both"]
        pairs.obs_names = [f"synthetic_{number}" for number in range(pairs.n_obs)]
        pairs.obs["source"] = np.asarray(training.obs_names[extra.spot])
        pairs.obs["synthetic"] = True
    keys = {"size_factor_key": "total_counts", "sample_key": "sample", "target_layer": "completed"}
    Stem.setup_anndata(training, image_key="X_both", **keys)
    model = Stem(training)
    model.train(stage="network", synthetic=pairs, accelerator="cpu", enable_progress_bar=False)
    genes = list(training.var_names[data.scored])
    predicted = model.get_predicted_expression(held_out, gene_list=genes, return_numpy=True)
    return _image_peers._rate(predicted.astype(np.float64)), float(model.module.synthetic_weight)
