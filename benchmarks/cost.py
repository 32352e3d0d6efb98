"""Time, memory and arithmetic of LGDiST with default settings on a simulated slide: ``python -m benchmarks.cost``."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._commands import quiet

_REPEATS = 5
_MATRIX = 2048  # rows of the matrices whose product shows the machine's peak


class Watch(Callback):
    """Seconds of each stage and of its training steps, by the name of its plan.

    Parameters
    ----------
    count
        Whether to count floating-point operations of the steps instead, which slows them.
    """

    def __init__(self, count: bool = False):
        self.seconds: dict[str, float] = defaultdict(float)
        self.step_seconds: dict[str, float] = defaultdict(float)
        self.n_steps: dict[str, int] = defaultdict(int)
        self.operations: dict[str, int] = defaultdict(int)
        self.count = count

    def __deepcopy__(self, memo: dict) -> Watch:
        return self  # one for all stages

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = time.perf_counter()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds[_name(pl_module)] += time.perf_counter() - self._began

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.count:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        self._step_began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        name = _name(pl_module)
        self.step_seconds[name] += time.perf_counter() - self._step_began
        self.n_steps[name] += 1
        if self.count:
            self._counter.__exit__(None, None, None)
            self.operations[name] += self._counter.get_total_flops()


def _name(plan: Any) -> str:
    return plan.stage


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.cost", description=__doc__)
    parser.add_argument("--spots", type=int, default=3639)
    parser.add_argument("--genes", type=int, default=1024)
    parser.add_argument("--epochs", type=int, help="epochs of each stage; default: the model's own")
    arguments = parser.parse_args(argv)

    import scvi

    from lgdist_scvi import LGDiST, datasets

    quiet()
    scvi.settings.seed = 0
    adata = datasets.simulated_visium(n_spots=arguments.spots, n_genes=arguments.genes)
    del adata.layers["rate"]  # dense, and not part of real data
    report("simulated", 0.0)
    with_time("setup_anndata", lambda: LGDiST.setup_anndata(adata))
    made = []
    with_time("LGDiST(adata)", lambda: made.append(LGDiST(adata)))
    model, watch = made[0], Watch()
    seconds = with_time(
        "train", lambda: model.train(max_epochs=arguments.epochs, enable_progress_bar=False, callbacks=[watch])
    )
    for name, part in watch.seconds.items():
        print(
            f"  stage {name}: {part:.1f} s, of which {watch.n_steps[name]} training steps {watch.step_seconds[name]:.1f} s"
        )
    print(f"  experts and calibration: {seconds - sum(watch.seconds.values()):.1f} s")
    seconds = [
        with_time("posterior mean", lambda: model.get_completed_expression(return_numpy=True)) for _ in range(_REPEATS)
    ]
    print(f"posterior mean, median: {arguments.spots / statistics.median(seconds):,.0f} spots per second")
    with_time("complete, with standard deviation and intervals", lambda: model.complete(adata, silent=True))

    counted = Watch(count=True)
    part = adata[:1024].copy()
    LGDiST.setup_anndata(part)
    LGDiST(part).train(max_epochs=1, enable_progress_bar=False, callbacks=[counted])
    peak = matrix_peak()
    print(f"{torch.get_num_threads()} threads; product of {_MATRIX} x {_MATRIX} matrices: {peak / 1e9:.0f} GFLOP/s")
    for name, operations in counted.operations.items():
        per_step = operations / counted.n_steps[name]
        achieved = per_step * watch.n_steps[name] / watch.step_seconds[name]
        print(
            f"  step of stage {name}: {per_step / 1e9:.1f} GFLOP in matrix products, {achieved / 1e9:.0f} GFLOP/s, "
            f"{achieved / peak:.0%} of that"
        )


def matrix_peak() -> float:
    """Floating-point operations per second in a product of large float32 matrices: the best of ten."""
    left, right = torch.randn(2, _MATRIX, _MATRIX)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * _MATRIX**3 / best


def with_time(name: str, run: Callable[[], Any]) -> float:
    """Run, report, and give the seconds it took."""
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    report(name, seconds)
    return seconds


def report(name: str, seconds: float) -> None:
    """Print seconds and the peak memory of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {seconds:.1f} s, peak memory so far {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
