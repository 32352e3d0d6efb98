"""Time and memory of image features, and of LGDiST and Stem with default settings, on simulated slides."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from benchmarks._shared import peak_memory, quiet

_REPEATS = 5
_IMAGE = (9000, 10_000, 3)  # pixels
_PATCH_PX = 224
_SECTIONS, _N_FEATURES = 4, 1339  # that Stem learns from: as of the default encoder and of colour


class Watch(Callback):
    """Name, seconds and training steps of each stage."""

    def __init__(self):
        self.stages: list[tuple[str, float, int]] = []

    def __deepcopy__(self, memo: dict) -> Watch:
        return self  # one for all stages, which otherwise train with copies

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = time.perf_counter()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        seconds = time.perf_counter() - self._began
        self.stages.append((pl_module.stage, seconds, trainer.global_step))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="default: all; the peak memory of one is that of it alone",
    )
    parser.add_argument("--patches", type=int, default=1000, help="of features; default: %(default)s")
    parser.add_argument("--spots", type=int, default=3639, help="of LGDiST; default: %(default)s")
    parser.add_argument("--stem-spots", type=int, default=730, help="of Stem; default: %(default)s")
    parser.add_argument("--genes", type=int, default=1024, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")


def main(arguments: argparse.Namespace) -> None:
    import scvi
    import torch

    quiet()
    for part in arguments.parts:
        scvi.settings.seed = 0
        print(f"{part}: {torch.get_num_threads()} threads, peak memory so far {peak_memory() / 1024:.2f} GiB")
        PARTS[part](arguments)


def lgdist(arguments: argparse.Namespace) -> None:
    """LGDiST: training, posterior mean, completion."""
    from lgdist_scvi import LGDiST, datasets

    adata = datasets.simulated_visium(n_spots=arguments.spots, n_genes=arguments.genes)
    del adata.layers["rate"]  # dense, and not part of real data
    timed("setup_anndata", lambda: LGDiST.setup_anndata(adata))
    model, _ = timed("LGDiST(adata)", lambda: LGDiST(adata))
    _train(model, arguments.epochs, "experts and calibration")
    _posterior_mean(lambda: model.get_completed_expression(return_numpy=True), arguments.spots)
    timed("complete, with standard deviation and intervals", lambda: model.complete(adata, silent=True))


def stem(arguments: argparse.Namespace) -> None:
    """Stem: training with the LGDiST that finds its targets, posterior mean."""
    from lgdist_scvi import Stem, datasets

    adata = datasets.simulated_visium(n_spots=arguments.stem_spots, n_genes=arguments.genes, n_samples=_SECTIONS)
    score, rng = np.log(adata.layers.pop("rate")), np.random.default_rng(0)
    told = (score - score.mean(axis=0)) @ rng.normal(size=(adata.n_vars, _N_FEATURES)) / adata.n_vars**0.5
    adata.obsm["X_image"] = (told + rng.normal(size=told.shape)).astype(np.float32)
    Stem.setup_anndata(adata, sample_key="sample")
    model = Stem(adata)
    _train(model, arguments.epochs, "LGDiST of the targets, expert and calibration")
    _posterior_mean(lambda: model.get_predicted_expression(return_numpy=True), adata.n_obs)


def _train(model: Any, epochs: int | None, rest: str) -> None:
    """Report the time of training, and of its parts."""
    watch = Watch()
    _, seconds = timed("train", lambda: model.train(max_epochs=epochs, enable_progress_bar=False, callbacks=[watch]))
    for name, part, n_steps in watch.stages:
        print(f"  stage {name}: {part:.1f} s, {n_steps} steps")
    print(f"  {rest}: {seconds - sum(part for _, part, _ in watch.stages):.1f} s")


def _posterior_mean(ask: Callable[[], Any], n_spots: int) -> None:
    seconds = median(timed("posterior mean", ask)[1] for _ in range(_REPEATS))
    print(f"posterior mean, median: {n_spots / seconds:,.0f} spots per second")


def features(arguments: argparse.Namespace) -> None:
    """Features of the patches of a large image, which is read one block at a time."""
    from anndata import AnnData

    from lgdist_scvi import pp

    side = np.ceil(arguments.patches**0.5)
    rows, columns = np.divmod(np.arange(arguments.patches), side)
    places = 1000 + np.stack([columns * 7500, rows * 6500], axis=1) / side
    adata = AnnData(shape=(len(places), 0), obsm={"spatial": places})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        _write_image(path)
        print(f"image of {_IMAGE[0]:,} x {_IMAGE[1]:,} pixels, peak memory so far {peak_memory() / 1024:.2f} GiB")
        for name, encoder in (("stain", {"encoder": "stain"}), ("default encoders", {})):
            what, asked = f"{len(places):,} patches, {name}", {"patch_px": _PATCH_PX, "silent": True, **encoder}
            try:
                timed(what, lambda asked=asked: pp.image_features(adata, path, **asked))
            except ImportError as error:
                print(f"{what}: skipped, {error}")


def _write_image(path: Path) -> None:
    import tifffile

    edge, rng = 512, np.random.default_rng(0)
    tissue = (np.array([190, 120, 170]) + rng.integers(-20, 20, (edge, edge, 3))).astype(np.uint8)
    glass = np.full_like(tissue, 244)
    inside = [range(edge, length - 2 * edge) for length in _IMAGE]
    tiles = (
        tissue if row in inside[0] and column in inside[1] else glass
        for row in range(0, _IMAGE[0], edge)
        for column in range(0, _IMAGE[1], edge)
    )
    tifffile.imwrite(
        path, tiles, shape=_IMAGE, dtype=np.uint8, photometric="rgb", tile=(edge, edge), compression="zlib"
    )


PARTS = {"features": features, "lgdist": lgdist, "stem": stem}


def timed(name: str, run: Callable[[], Any]) -> tuple[Any, float]:
    """Run and report; the result, and the seconds it took."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.1f} s, peak memory so far {peak_memory() / 1024:.2f} GiB", flush=True)
    return result, seconds
