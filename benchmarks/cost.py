"""Time and memory of image features, and of LGDiST with default settings, on simulated slides."""

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
    parser.add_argument("--spots", type=int, default=3639)
    parser.add_argument("--genes", type=int, default=1024)
    parser.add_argument("--epochs", type=int, help="of each stage; default: the model's own")


def main(arguments: argparse.Namespace) -> None:
    import scvi
    import torch

    from lgdist_scvi import LGDiST, datasets

    quiet()
    scvi.settings.seed = 0
    with tempfile.TemporaryDirectory() as folder:
        features(Path(folder) / "slide.tif")
    adata = datasets.simulated_visium(n_spots=arguments.spots, n_genes=arguments.genes)
    del adata.layers["rate"]  # dense, and not part of real data
    print(f"{torch.get_num_threads()} threads, peak memory so far {peak_memory() / 1024:.2f} GiB")
    timed("setup_anndata", lambda: LGDiST.setup_anndata(adata))
    model, _ = timed("LGDiST(adata)", lambda: LGDiST(adata))
    watch = Watch()
    _, seconds = timed(
        "train", lambda: model.train(max_epochs=arguments.epochs, enable_progress_bar=False, callbacks=[watch])
    )
    for name, part, n_steps in watch.stages:
        print(f"  stage {name}: {part:.1f} s, {n_steps} steps")
    print(f"  experts and calibration: {seconds - sum(part for _, part, _ in watch.stages):.1f} s")
    asked = [
        timed("posterior mean", lambda: model.get_completed_expression(return_numpy=True)) for _ in range(_REPEATS)
    ]
    print(f"posterior mean, median: {arguments.spots / median(seconds for _, seconds in asked):,.0f} spots per second")
    timed("complete, with standard deviation and intervals", lambda: model.complete(adata, silent=True))


def features(path: Path) -> None:
    """Features of the patches of a large image, which is written to `path` and read one block at a time."""
    import tifffile
    from anndata import AnnData

    from lgdist_scvi import pp

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
    places = np.stack(np.meshgrid(np.arange(1000, 8500, 250.0), np.arange(1000, 7500, 250.0)), axis=-1).reshape(-1, 2)
    adata = AnnData(shape=(len(places), 0), obsm={"spatial": places})
    print(f"image of {_IMAGE[0]:,} x {_IMAGE[1]:,} pixels, peak memory so far {peak_memory() / 1024:.2f} GiB")
    timed(
        f"{len(places)} patches, stain",
        lambda: pp.image_features(adata, path, encoder="stain", patch_px=224, silent=True),
    )


def timed(name: str, run: Callable[[], Any]) -> tuple[Any, float]:
    """Run and report; the result, and the seconds it took."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.1f} s, peak memory so far {peak_memory() / 1024:.2f} GiB", flush=True)
    return result, seconds
