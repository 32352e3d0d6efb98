"""Sections with an image: what is shown to methods that predict a section from its image alone, and how they are scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
from scipy import sparse

from benchmarks._protocols import MIN_COUNTS
from lgdist_scvi import metrics, pp
from lgdist_scvi._units import library_size, log1p_cp10k, to_cp10k  # noqa: PLC2701  the one scale

REPOSITORY = Path(__file__).resolve().parents[1]
ENCODERS = {"X_image": "efficientnet-lite0", "X_stain": "stain"}
PATCH_PX = 224
STAIN = (1.3, 0.75)  # of the control "stained": haematoxylin and eosin relative to what they are
N_GENES, N_SCORED = 1024, 250
MIN_DETECTION = 0.1  # of a scored gene, in the training spots
SHIFT = 3  # spots
_COMPLETION = ("data", "inference", "model", "module", "train")  # folders of the source of completed targets


@dataclass
class Sections:
    """Training sections with counts and image, and one of which only the image is shown.

    Attributes
    ----------
    training
        Counts of the chosen genes, (n_obs, n_genes), of sections ``obs["sample"]``, with ``obs["total_counts"]`` over all genes;
        image features in obsm, standardised in each section: ``"X_image"`` and ``"X_stain"`` of the own patch,
        ``"X_image_context"`` and ``"X_stain_context"`` mean of those of the neighbours; log1p(CP10K) of LGDiST's expected rates, fitted on these sections alone, in ``layers["completed"]``.
    held_out
        The same of the held-out section, without counts and completed values.
    scored
        Which genes are scored, bool, (n_genes,).
    """

    training: ad.AnnData
    held_out: ad.AnnData
    scored: np.ndarray
    _counts: sparse.csr_matrix
    _library: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """Counts of the scored genes in training, float64, (n_obs, n_scored)."""
        return np.asarray(self.training.X[:, self.scored].todense(), dtype=np.float64)

    @property
    def library(self) -> np.ndarray:
        """Library sizes in training, counts of all genes, (n_obs,)."""
        return self.training.obs["total_counts"].to_numpy(dtype=np.float64)

    @property
    def section(self) -> np.ndarray:
        """Section of each training spot, (n_obs,)."""
        return self.training.obs["sample"].to_numpy(dtype=str)

    @property
    def gene_mean(self) -> np.ndarray:
        """Share of each scored gene in the library of the training sections, (n_scored,)."""
        return self.counts.sum(axis=0) / self.library.sum()

    @property
    def measured_library(self) -> np.ndarray:
        """Library sizes of the held-out section: for the yardstick that knows the depth, and for scoring, only."""
        return self._library

    def measured_values(self) -> np.ndarray:
        """log1p(CP10K) of the held-out section, (n_held_out, n_scored): for scoring only."""
        return log1p_cp10k(self._counts, self._library)

    def measured_neighbors(self) -> np.ndarray:
        """Rates pooled over the measured neighbours of each held-out spot: a yardstick that no method can use."""
        graph = (self.held_out.obsp["spatial_connectivities"] > 0).astype(np.float64)
        counts, library = (graph @ self._counts).toarray(), graph @ self._library
        prior = self.library.sum() / len(self.library)  # one spot of the gene means
        return (counts + prior * self.gene_mean) / (library + prior)[:, None]

    @property
    def fingerprint(self) -> str:
        """Digest of what a method is given: equal for all methods that saw the same data."""
        digest = hashlib.sha256(np.ascontiguousarray(self.counts))
        for adata in (self.training, self.held_out):
            digest.update(np.ascontiguousarray(adata.obsm["X_image"]))
        return digest.hexdigest()[:12]

    def score(self, rate: np.ndarray) -> dict[str, float]:
        """Score predicted shares of the library, (n_obs, n_scored), on the raw counts of the held-out section.

        Returns
        -------
        D2 and R2 of rates with the measured library; mean over genes of the correlation of log1p(CP10K) over spots, of the
        prediction, of the logarithm of the measured library, and of the prediction once a line through that logarithm is
        taken off both; mean squared errors of log1p(CP10K), of all entries and of those that are not zero.
        """
        truth = self.measured_values().astype(np.float64)
        prediction = np.log1p(to_cp10k(rate))
        error = (prediction - truth) ** 2
        given = {"library": self._library, "gene_mean": self.gene_mean}
        depth = np.log(self._library)[:, None]
        return {
            "d2": metrics.poisson_deviance_explained(self._counts, rate, **given),
            "variance_explained": metrics.poisson_variance_explained(self._counts, rate, **given),
            "pcc_gene": mean_correlation(prediction, truth),
            "pcc_depth": mean_correlation(np.broadcast_to(depth, truth.shape), truth),
            "pcc_given_depth": mean_correlation(_without(depth, prediction), _without(depth, truth)),
            "mse": float(error.mean()),
            "mse_nonzero": float(error[truth > 0].mean()),
        }


def mean_correlation(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean over genes of the correlation over spots; NaN where the prediction of every gene is constant."""
    a, b = prediction - prediction.mean(axis=0), truth - truth.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    varies = (np.ptp(truth, axis=0) > 0) & (np.ptp(prediction, axis=0) > 1e-9)
    return float(((a * b).sum(axis=0)[varies] / scale[varies]).mean()) if varies.any() else float("nan")


def _without(depth: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values less the line through the depth, (n_obs, 1), that fits each gene best."""
    line = np.hstack([np.ones_like(depth), depth])
    return values - line @ np.linalg.lstsq(line, values, rcond=None)[0]


def images(path: Path) -> dict[str, Path]:
    """Section and image of each section of a file that has one beside it: ``her2st_C.h5ad``, ``her2st_C2_he.jpg``."""
    samples = ad.read_h5ad(path, backed="r").obs["sample"].unique()
    stem = path.stem.rsplit("_", 1)[0]
    found = {str(sample): path.parent / f"{stem}_{sample}_he.jpg" for sample in sorted(samples)}
    return {sample: image for sample, image in found.items() if image.is_file()}


def read(path: Path, sections: list[str]) -> ad.AnnData:
    """Read the sections that have an image, all genes, without poor spots, and with their graph."""
    adata = ad.read_h5ad(path)
    adata = adata[adata.obs["sample"].isin(sections)].copy()
    sc.pp.filter_cells(adata, min_counts=MIN_COUNTS)
    adata.obs["total_counts"] = library_size(adata.X)
    pp.spatial_neighbors(adata, sample_key="sample")
    return adata


def features(path: Path, paths: dict[str, Path], cache: Path) -> dict[str, np.ndarray]:
    """Image features of every spot, (n_obs, d) each, and ``"spots"``, their names; made once and stored in `cache`."""
    stored = cache / f"features_{path.stem}.npz"
    if not stored.exists():
        adata = read(path, list(paths))
        for key, encoder in ENCODERS.items():
            pp.image_features(
                adata, paths, encoder=encoder, patch_px=PATCH_PX, sample_key="sample", key_added=key, silent=True
            )
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = stored.with_suffix(".partial.npz")
        np.savez(unfinished, spots=adata.obs_names.to_numpy(dtype=str), **{key: adata.obsm[key] for key in ENCODERS})
        unfinished.replace(stored)
    with np.load(stored) as file:
        return dict(file)


def stained_features(path: Path, paths: dict[str, Path], cache: Path) -> dict[str, np.ndarray]:
    """The same of images that another laboratory stained: more haematoxylin, less eosin."""
    stored = cache / f"features_{path.stem}_stained.npz"
    if not stored.exists():
        from lgdist_scvi.pp._encoders import get_encoder  # noqa: PLC2701  patches are stained on their way to it

        adata = read(path, list(paths))
        patches = pp.image_patches(adata, paths, patch_px=PATCH_PX, sample_key="sample", silent=True)
        encoders = {key: get_encoder(encoder) for key, encoder in ENCODERS.items()}
        blocks = [_stained(patches[start : start + 32]) for start in range(0, len(patches), 32)]
        made = {key: np.vstack([encode(block) for block in blocks]) for key, encode in encoders.items()}
        unfinished = stored.with_suffix(".partial.npz")
        np.savez(unfinished, spots=adata.obs_names.to_numpy(dtype=str), **made)
        unfinished.replace(stored)
    with np.load(stored) as file:
        return dict(file)


def _stained(patches: np.ndarray) -> np.ndarray:
    from skimage.color import hed2rgb, rgb2hed

    stains = rgb2hed(patches)
    stains[..., :2] *= STAIN
    return (hed2rgb(stains) * 255).round().clip(0, 255).astype(np.uint8)


def prepare(path: Path, section: str, cache: Path, seed: int) -> Path:
    """Choose genes and complete counts on all sections but one, once; the file that :func:`hold_out` reads."""
    stored = prepared_path(path, section, cache, seed)
    if not stored.exists():
        adata = choose_genes(read(path, list(images(path))), section)
        shown = (adata.obs["sample"] != section).to_numpy()
        completed = np.full(adata.shape, np.nan, dtype=np.float32)
        completed[shown] = _complete(adata[shown].copy(), seed)
        adata.layers["completed"] = completed
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = stored.with_suffix(".partial")
        adata.write_h5ad(unfinished)
        unfinished.replace(stored)
    return stored


def prepared_path(path: Path, section: str, cache: Path, seed: int) -> Path:
    """Name the file of :func:`prepare`: another one for other source of the model that completes."""
    digest = hashlib.sha256()
    for folder in _COMPLETION:
        for file in sorted(REPOSITORY.glob(f"src/lgdist_scvi/{folder}/**/*.py")):
            if not any(other in str(file.relative_to(REPOSITORY)) for other in ("stem", "c2lst")):
                digest.update(file.read_bytes())
    return cache / f"{path.stem}_{section}_seed{seed}_{digest.hexdigest()[:6]}.h5ad"


def choose_genes(adata: ad.AnnData, section: str) -> ad.AnnData:
    """Keep the genes that all sections but one choose, ``var["scored"]`` among them."""
    training = adata[adata.obs["sample"] != section].copy()
    pp.select_genes(training, n_genes=N_GENES, sample_key="sample")
    detection = np.asarray((training.X > 0).mean(axis=0)).ravel()
    moran = training.var["moranI"].where(detection > MIN_DETECTION).to_numpy()
    adata = adata.copy()
    adata.var["scored"] = np.isin(np.arange(adata.n_vars), np.argsort(-moran, kind="stable")[:N_SCORED])
    adata.var["scored"] &= ~np.isnan(moran)
    return adata[:, (training.var["target_gene"] | training.var["context_gene"]).to_numpy()].copy()


def _complete(training: ad.AnnData, seed: int) -> np.ndarray:
    """Expected rates of LGDiST with default settings, log1p(CP10K)."""
    import scvi

    from lgdist_scvi import LGDiST

    scvi.settings.seed = seed
    LGDiST.setup_anndata(training, size_factor_key="total_counts", sample_key="sample")
    model = LGDiST(training, seed=seed)
    model.train(enable_progress_bar=False)
    return model.get_completed_expression(observed="model", estimand="rate", return_numpy=True)


def hold_out(
    prepared: Path,
    image: dict[str, np.ndarray],
    section: str,
    control: str | None = None,
    n_pairs: int | None = None,
    seed: int = 0,
    standardized: bool = True,
    stained: dict[str, np.ndarray] | None = None,
) -> Sections:
    """Hide the counts of a section.

    Parameters
    ----------
    prepared, image
        As :func:`prepare` and :func:`features` give them.
    section
        The one that is held out.
    control
        ``"shuffled"``: patches are permuted within each section; ``"shifted"``: each spot gets the patch three spots beside it;
        both in training and in the held-out section. ``"stained"``: `image` is of all sections as they are, and `stained`, from
        :func:`stained_features`, of the held-out one.
    n_pairs
        Number of training spots, drawn at random; ``None``: all.
    standardized
        Features have mean 0 and variance 1 over all spots of each section, for sections differ in their staining.
    """
    adata = ad.read_h5ad(prepared)
    place = {name: row for row, name in enumerate(image["spots"])}
    rows = np.array([place[name] for name in adata.obs_names])
    if control in ("shuffled", "shifted"):
        rows = rows[_displaced(adata, control, seed)]
    for key in ENCODERS:
        adata.obsm[key] = image[key][rows]
        if control == "stained":
            there = (adata.obs["sample"] == section).to_numpy()
            adata.obsm[key][there] = stained[key][rows[there]]
    graph = (adata.obsp["spatial_connectivities"] > 0).astype(np.float64)
    n_neighbors = np.asarray(graph.sum(axis=1))
    for key in ENCODERS:
        own = adata.obsm[key]
        # a spot without neighbours has its own patch around it
        around = np.where(n_neighbors > 0, (graph @ own) / np.maximum(n_neighbors, 1), own)
        adata.obsm[f"{key}_context"] = around.astype(np.float32)
    if standardized:
        for key in list(adata.obsm):
            if key.startswith("X_"):
                adata.obsm[key] = _standardized(adata.obsm[key], adata.obs["sample"].to_numpy())
    out, scored = (adata.obs["sample"] == section).to_numpy(), adata.var["scored"].to_numpy()
    training, held_out = adata[~out].copy(), adata[out].copy()
    if n_pairs is not None:
        chosen = np.random.default_rng(seed).choice(training.n_obs, min(n_pairs, training.n_obs), replace=False)
        training = training[np.sort(chosen)].copy()
        del training.layers["completed"]  # these saw all spots
    counts = sparse.csr_matrix(held_out.X[:, scored], dtype=np.float64)
    library = held_out.obs["total_counts"].to_numpy(dtype=np.float64)
    # what is scored stays here: a method gets the section without it
    held_out.X = None
    del held_out.layers["completed"], held_out.obs["total_counts"]
    held_out.obs = held_out.obs[["sample"]]
    return Sections(training, held_out, scored, counts, library)


def _standardized(features: np.ndarray, section: np.ndarray) -> np.ndarray:
    result = np.empty_like(features)
    for name in np.unique(section):
        part = features[section == name]
        result[section == name] = (part - part.mean(axis=0)) / (part.std(axis=0) + 1e-6)
    return result


def _displaced(adata: ad.AnnData, control: str, seed: int) -> np.ndarray:
    """The spot whose patch each spot gets, (n_obs,)."""
    from scipy.spatial import KDTree

    result, generator = np.arange(adata.n_obs), np.random.default_rng(seed)
    for name in adata.obs["sample"].unique():
        spots = np.flatnonzero(adata.obs["sample"] == name)
        if control == "shuffled":
            result[spots] = generator.permutation(spots)
            continue
        where = adata.obsm["spatial"][spots]
        tree = KDTree(where)
        step = np.median(tree.query(where, 2)[0][:, 1])
        right, left = (tree.query(where + [way * SHIFT * step, 0]) for way in (1, -1))
        result[spots] = spots[np.where(right[0] <= left[0], right[1], left[1])]  # at an edge, to the other side
    return result
