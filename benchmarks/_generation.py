"""Patches generated for the spots of a section of which the generator saw nothing, and what they are worth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import anndata as ad
import numpy as np

from benchmarks import _image_peers, _sections
from benchmarks._shared import peak_memory
from lgdist_scvi import C2LST, metrics, pp

SIZE = 64  # pixels of the patches that are generated and compared
OVERLAP = 0.5  # of the tiles of tissue
BATCH = 16
PATCH_UM = 155.0
N_ASKED = 32  # spots whose patches are asked for their expression, and profiles that it may be
KINDS = ("real", "floor", "generated", "not guided", "permuted", "adapter without genes", "central model")
ASKED = ("real", "generated", "permuted")
POSTERIORS = tuple(f"posterior of {kind}" for kind in ASKED)


@dataclass(frozen=True)
class Budget:
    """How much is trained: the figures depend on it, so that it is part of each row."""

    n_tiles: int = 5000
    n_steps: int = 5000
    n_epochs: int | None = None
    n_sampling_steps: int = 20
    guidance_scale: float = 2.0


def patches_of(path: Path, cache: Path) -> dict[str, np.ndarray]:
    """Patches of all spots, ``"spots"``, their names, and tiles of the tissue of each section; made once."""
    stored = cache / f"patches{SIZE}_{path.stem}.npz"
    if not stored.exists():
        images = _sections.images(path)
        adata = _sections.read(path, list(images))
        arguments = {"patch_px": _sections.PATCH_PX, "size": SIZE, "silent": True}
        found = {"spots": adata.obs_names.to_numpy(dtype=str)}
        found["patches"] = pp.image_patches(adata, images, sample_key="sample", **arguments)
        for name, image in images.items():
            spots = adata[adata.obs["sample"] == name]
            found[f"tiles_{name}"] = pp.image_patches(spots, image, tissue=True, overlap=OVERLAP, **arguments)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = stored.with_suffix(".partial.npz")
        np.savez(unfinished, **found)
        unfinished.replace(stored)
    with np.load(stored) as file:
        return dict(file)


@lru_cache(maxsize=1)
def data_of(path: Path, section: str, cache: Path) -> ad.AnnData:
    """Spots of all sections, genes chosen without one of them, with their patches; not to be written into."""
    patches = patches_of(path, cache)
    adata = _sections.choose_genes(_sections.read(path, list(_sections.images(path))), section)
    place = {name: row for row, name in enumerate(patches["spots"])}
    adata.obsm["patches"] = patches["patches"][[place[name] for name in adata.obs_names]]
    return adata


def train(path: Path, section: str, cache: Path, seed: int, budget: Budget) -> dict[str, float]:
    """Train central model and adapter on all sections but one, and keep them; an interrupted training goes on."""
    import scvi

    folder = folder_of(section, cache, seed, budget)
    folder.mkdir(parents=True, exist_ok=True)
    found, took = patches_of(path, cache), {}
    others = [name for name in _sections.images(path) if name != section]
    tiles = np.concatenate([found[f"tiles_{name}"] for name in others])
    chosen = np.random.default_rng(seed).permutation(len(tiles))[: budget.n_tiles]
    took["n_tiles"] = len(chosen)
    central = folder / "central"
    if not central.exists():
        start = time.perf_counter()
        checkpoint = folder / "central.ckpt"
        C2LST.pretrain(
            tiles[np.sort(chosen)],
            budget.n_steps,
            batch_size=BATCH,
            seed=seed,
            checkpoint=checkpoint,
            accelerator="cpu",
        ).save(central)
        took["seconds_central"] = time.perf_counter() - start
    adata = data_of(path, section, cache)
    training = adata[adata.obs["sample"] != section].copy()
    scvi.settings.seed = seed
    C2LST.setup_anndata(training, "patches", size_factor_key="total_counts", sample_key="sample")
    model = C2LST(training, central=central)
    start = time.perf_counter()
    model.train(max_epochs=budget.n_epochs, batch_size=BATCH, accelerator="cpu", enable_progress_bar=False)
    took["seconds_adapter"] = time.perf_counter() - start
    model.save(str(folder / "adapter"), overwrite=True)
    return took | {"memory_mib": peak_memory()}


def folder_of(section: str, cache: Path, seed: int, budget: Budget) -> Path:
    """Where the models of a held-out section are kept."""
    return cache / f"c2lst_{section}_seed{seed}_{budget.n_tiles}tiles_{budget.n_steps}steps"


def generate(path: Path, section: str, cache: Path, seed: int, budget: Budget) -> dict[str, np.ndarray]:
    """Patches for the spots of the held-out section, and for permuted ones, and without a condition; made once."""
    folder = folder_of(section, cache, seed, budget)
    stored = folder / f"generated_guidance{budget.guidance_scale:g}_{budget.n_sampling_steps}steps.npz"
    if not stored.exists():
        adata = data_of(path, section, cache)
        model = C2LST.load(str(folder / "adapter"), adata[adata.obs["sample"] != section].copy())
        held_out = adata[adata.obs["sample"] == section].copy()
        del held_out.obsm["patches"]
        order = np.random.default_rng(seed).permutation(held_out.n_obs)
        how = {"n_steps": budget.n_sampling_steps, "seed": seed}
        start = time.perf_counter()
        found = {"generated": model.generate(held_out, guidance_scale=budget.guidance_scale, **how)}
        took = time.perf_counter() - start
        found["permuted"] = model.generate(held_out[order], guidance_scale=budget.guidance_scale, **how)
        found["not guided"] = model.generate(held_out, guidance_scale=1, **how)
        found["adapter without genes"] = model.generate(held_out, guidance_scale=0, **how)
        found["central model"] = model.central.generate(held_out.n_obs, **how)
        unfinished = stored.with_suffix(".partial.npz")
        np.savez(unfinished, seconds_per_patch=took / held_out.n_obs, **found)
        unfinished.replace(stored)
    with np.load(stored) as file:
        return dict(file)


def encoded(patches: np.ndarray) -> dict[str, np.ndarray]:
    """Features of patches by each encoder of the benchmark of sections, (n, d) each."""
    from lgdist_scvi.metrics._image_features import features_of  # noqa: PLC2701

    return {key: features_of({"patches": patches}, encoder)["patches"] for key, encoder in _sections.ENCODERS.items()}


def score(path: Path, section: str, cache: Path, seed: int, budget: Budget) -> list[dict]:
    """Rows of figures, one for each kind of patches."""
    made = generate(path, section, cache, seed, budget)
    seconds_per_patch = float(made.pop("seconds_per_patch"))
    adata = data_of(path, section, cache)
    out = (adata.obs["sample"] == section).to_numpy()
    real = encoded(adata.obsm["patches"])
    features = {name: encoded(patches) for name, patches in made.items()}
    key = "X_image"
    distance = metrics.image_distance(
        real[key][out],
        features["generated"][key],
        real[key][~out],
        features["permuted"][key],
        others={name: of[key] for name, of in features.items() if name not in ("generated", "permuted")},
    )
    composition = {name: metrics.patch_composition(patches, PATCH_UM) for name, patches in made.items()}
    composition["real"] = metrics.patch_composition(adata.obsm["patches"][out], PATCH_UM)
    graph = adata[out].obsp["spatial_connectivities"].tocoo()
    rows = []
    for name in KINDS:
        row = {"method": name, "n_spots": int((~out).sum()), "seconds_per_patch": seconds_per_patch}
        if name in distance.index:
            row |= distance.loc[name].to_dict()
        if name != "floor":
            held_out = {encoder: of[out] for encoder, of in real.items()} if name == "real" else features[name]
            row |= {
                f"d2_{encoder}": _d2(adata, out, real, held_out, cache, seed, encoder) for encoder in _sections.ENCODERS
            }
            ours = composition[name]
            for what in ours:
                if name == "real":  # of neighbouring spots
                    row[f"pcc_{what}"] = _correlation(
                        ours[what].to_numpy()[graph.row], ours[what].to_numpy()[graph.col]
                    )
                else:
                    row[f"pcc_{what}"] = _correlation(ours[what].to_numpy(), composition["real"][what].to_numpy())
                row[f"mean_{what}"] = ours[what].mean()
            copying = metrics.image_copying(held_out[key], real[key][out], real[key][~out])
            row |= {f"copying_{what}": value for what, value in copying.items()}
        rows.append(row)
    return rows


def posterior(path: Path, section: str, cache: Path, seed: int, budget: Budget) -> list[dict]:
    """Which expression the model itself finds in patches of the held-out section, a row for each kind.

    The rank of a spot's own profile is among those of spots of its section; rates are expected over spots of the other sections.
    """
    folder = folder_of(section, cache, seed, budget)
    if not (folder / "adapter").exists():
        train(path, section, cache, seed, budget)
    made = generate(path, section, cache, seed, budget)
    adata = data_of(path, section, cache)
    out, scored = (adata.obs["sample"] == section).to_numpy(), adata.var["scored"].to_numpy()
    training, held_out = adata[~out].copy(), adata[out].copy()
    model = C2LST.load(str(folder / "adapter"), training)
    rows = np.random.default_rng(seed).permutation(held_out.n_obs)[:N_ASKED]
    judged = held_out[rows].copy()
    library = judged.obs["total_counts"].to_numpy(float)
    data = _sections.Sections(training, judged, scored, judged.X[:, scored].astype(np.float64), library)
    drawn = training[np.random.default_rng(seed).permutation(training.n_obs)[:N_ASKED]].copy()
    nothing = {"n_levels": 1, "temperature": 1e12}  # so that the patch says nothing
    prior = model.get_expression_posterior(held_out.obsm["patches"][rows[:1]], drawn, seed=seed, **nothing)
    found = []
    for kind, name in zip(ASKED, POSTERIORS, strict=True):
        patches = held_out.obsm["patches"] if kind == "real" else made[kind]
        start = time.perf_counter()
        own = model.get_expression_posterior(patches[rows], judged, seed=seed)
        answer = model.get_expression_posterior(patches[rows], drawn, seed=seed)
        row = {"method": name, "n_spots": training.n_obs, "n": len(rows)}
        row["seconds_per_patch"] = (time.perf_counter() - start) / len(rows)
        rank = own.rank(np.arange(len(rows)))
        row |= {"rank": rank.mean(), "rank_se": rank.std(ddof=1) / len(rank) ** 0.5}
        row["probability"] = np.diag(own.probability).mean()
        for what, expression in (("d2_posterior", answer.expression), ("d2_prior", prior.expression)):
            rates = _image_peers._rate(expression.to_numpy()[:, scored])
            row[what] = data.score(np.broadcast_to(rates, (len(rows), rates.shape[1])))["d2"]
        found.append(row | {"memory_mib": peak_memory()})
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def _d2(
    adata: ad.AnnData,
    out: np.ndarray,
    real: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
    cache: Path,
    seed: int,
    key: str,
) -> float:
    """D2 of the spots' counts by a ridge that was trained on real patches of the other sections and asked about some patches."""
    values = real[key].copy()
    values[out] = held_out[key]
    values = _sections._standardized(values, adata.obs["sample"].to_numpy())
    shown = adata.copy()
    shown.obsm = {key: values.astype(np.float32)}
    training, hidden = shown[~out].copy(), shown[out].copy()
    scored = adata.var["scored"].to_numpy()
    counts = adata[out].X[:, scored].astype(np.float64)
    data = _sections.Sections(training, hidden, scored, counts, adata.obs["total_counts"].to_numpy(float)[out])
    return data.score(_image_peers.ridge(data, seed, (key,), "raw"))["d2"]
