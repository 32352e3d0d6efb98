"""Score methods on hidden counts; rows that are stored and current are not run again."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from multiprocessing import get_context
from pathlib import Path

from benchmarks._methods import ABLATIONS, METHODS, MODELS, PEERS
from benchmarks._protocols import PROTOCOLS
from benchmarks._results import ALL, RESULTS, Results, code_digest, machine
from benchmarks._shared import add_data, peak_memory, quiet, slides

# Minutes on two cores. One thread for each method: how many there are changes the last digits.
QUICK = {
    "files": ["human_breast_visium_subset"], "protocols": ["entry", "thinning"], "seeds": [0], "threads": 1,
    "methods": ["ridge", "poisson_nmf", "soft_impute", "lgdist"], "output": RESULTS / "quick", "again": True,
    "no_spread": True,
}  # fmt: skip
HEADLINE = {"entry": "mse", "spot": "mse", "block": "mse", "thinning": "d2", "shallow": "d2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    add_data(parser)
    parser.add_argument(
        "--quick", action="store_true", help="LGDiST and two peers, one small slide, two protocols, one seed: minutes"
    )
    parser.add_argument(
        "--files", nargs="+", help="names without .h5ad; default: all in the folder that are large enough"
    )
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all but the ablations")
    parser.add_argument("--ablations", action="store_true", help="LGDiST without its parts as well")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1")
    parser.add_argument("--output", type=Path, help="folder of results; default: benchmarks/results")
    parser.add_argument("--again", action="store_true", help="run what is stored and current as well")
    parser.add_argument("--workers", type=int, default=min(cores, 4), help="methods at a time; default: %(default)s")
    parser.add_argument("--threads", type=int, help="per method; default: the cores divided by the workers")
    parser.add_argument("--time-limit", type=int, help="seconds after which a method is given up")
    parser.add_argument("--no-spread", action="store_true", help="leave out the scores of samples and intervals")


def main(arguments: argparse.Namespace) -> None:
    from benchmarks.report import headline

    full = {"protocols": list(PROTOCOLS), "methods": [*PEERS, *MODELS], "seeds": [0, 1], "output": RESULTS}
    full["threads"] = max(1, (os.cpu_count() or 1) // max(1, arguments.workers))
    for name, value in {**full, **(QUICK if arguments.quick else {})}.items():
        if getattr(arguments, name) is None or getattr(arguments, name) is False:
            setattr(arguments, name, value)
    if arguments.workers < 1 or arguments.threads < 1:
        arguments.error("--workers and --threads must be at least 1")
    if arguments.ablations:
        arguments.methods = list(dict.fromkeys([*arguments.methods, *ABLATIONS]))
    paths, results = slides(arguments), Results(arguments.output, arguments.again)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        _run(arguments, paths, results, Path(scratch))
    rows = results.rows
    for name, values in (("file", paths), ("protocol", arguments.protocols), ("seed", arguments.seeds)):
        rows = rows[rows[name].isin(list(values))]
    print(
        f"\n{headline(rows)}\n\nStored in {arguments.output}; python -m benchmarks report {arguments.output} shows all tables."
    )


def _run(arguments: argparse.Namespace, paths: dict[str, Path], results: Results, scratch: Path) -> None:
    """Run every method on every task, and store each row when it is there."""
    todo = []
    prepared = {name: scratch / f"{name}.h5ad" for name in paths}
    calls = ((name, prepare, (path, prepared[name], arguments.protocols)) for name, path in paths.items())
    for name, state, answer in sorted(in_processes(calls, arguments.workers)):
        for protocol in arguments.protocols:
            reason = answer if state == "failed" else answer[protocol]
            for seed in arguments.seeds:
                if reason:
                    results.add({"file": name, "protocol": protocol, "seed": seed, "method": ALL, "failed": reason})
                    continue
                for method in arguments.methods:
                    if protocol in METHODS[method].protocols and not results.has(name, protocol, seed, method):
                        todo.append((name, protocol, seed, method))
            if reason:
                print(f"{name}, {protocol}: {reason}")
    print(f"{len(todo)} results to obtain", flush=True)
    codes = {method: code_digest(method) for method in arguments.methods}
    threads, workers, here = arguments.threads, arguments.workers, machine()
    calls = ((job, measure, (prepared[job[0]], *job[1:], threads, not arguments.no_spread)) for job in todo)
    began = time.monotonic()
    for number, (job, state, answer) in enumerate(in_processes(calls, workers, arguments.time_limit), start=1):
        row = dict(zip(("file", "protocol", "seed", "method"), job, strict=True))
        row |= {"date": date.today().isoformat(), "code": codes[row["method"]], "machine": here}
        row |= {"threads": threads, "workers": workers}
        row |= answer if state == "done" else {"failed": answer}
        results.add(row)
        passed = (time.monotonic() - began) / 60
        print(f"[{number}/{len(todo)}, {passed:.0f} min] {' '.join(map(str, job))}: {_outcome(row)}", flush=True)


def _outcome(row: dict) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    name = HEADLINE[row["protocol"]]
    text = f"{name} {row[name]:.4f} ({row['seconds']:.0f} s, {row['memory_mib'] / 1024:.1f} GiB)"
    return text + (f"; samples and intervals not scored: {row['spread_failed']}" if "spread_failed" in row else "")


def prepare(source: Path, target: Path, protocols: Iterable[str]) -> dict[str, str | None]:
    """Read a slide, choose its genes, and write it for the methods; why it is left out of each protocol."""
    quiet()
    from benchmarks._protocols import read, too_small

    adata, sample_key = read(source)
    adata.uns["benchmark_sample_key"] = sample_key or ""
    adata.write_h5ad(target)
    reasons = {protocol: too_small(adata, protocol) for protocol in protocols}
    return {protocol: reason and f"left out: {reason}" for protocol, reason in reasons.items()}


def measure(prepared: Path, protocol: str, seed: int, method: str, threads: int, spread: bool) -> dict:
    """Hide, run the method, score: what a row says."""
    quiet()
    import anndata as ad
    import numba
    import torch
    from threadpoolctl import threadpool_limits

    from benchmarks._protocols import task
    from benchmarks._spread import spread_scores

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    with threadpool_limits(threads):
        adata = ad.read_h5ad(prepared)
        given = task(adata, adata.uns["benchmark_sample_key"] or None, protocol, seed)
        row = {"hidden": given.fingerprint, "n_spots": given.adata.n_obs, "n_genes": given.adata.n_vars}
        start = time.perf_counter()
        prediction, model = METHODS[method].run(given, seed)
        row |= {"seconds": round(time.perf_counter() - start, 2), "memory_mib": round(peak_memory(), 1)}
        row |= given.score(prediction)
        if spread and model is not None:
            try:
                row |= spread_scores(model, given, seed)
            except Exception as error:  # noqa: BLE001  the scores of the prediction stand
                row["spread_failed"] = sentence(error)
    return row


def sentence(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


def in_processes(
    calls: Iterable[tuple[object, Callable, tuple]], workers: int = 1, time_limit: int | None = None
) -> Iterator[tuple[object, str, object]]:
    """Call functions, each in a fresh process, up to `workers` at a time.

    Each has a pool of its own: its peak memory is its own, and one that is killed breaks no other's pool.

    Parameters
    ----------
    calls
        Tag, function, arguments of each.
    time_limit
        Seconds after which a call is given up.

    Yields
    ------
    Tag, ``"done"`` or ``"failed"``, and the result or why there is none; in the order in which they end.
    """
    # a server that has imported the heavy packages forks each process at once; other systems start from nothing
    context = get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["benchmarks.run", "benchmarks._spread", "benchmarks._transformer", "scvi"])

    def alone(function: Callable, arguments: tuple) -> object:
        with ProcessPoolExecutor(1, mp_context=context, initializer=_give_up, initargs=(time_limit,)) as pool:
            return pool.submit(function, *arguments).result()

    threads = ThreadPoolExecutor(workers)
    try:
        tags = {threads.submit(alone, function, arguments): tag for tag, function, arguments in calls}
        for future in as_completed(tags):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                yield tags[future], "failed", "its process ended without an answer (out of memory?)"
            else:
                yield tags[future], *(("failed", sentence(error)) if error else ("done", future.result()))
    finally:
        threads.shutdown(cancel_futures=True)


def _give_up(seconds: int | None) -> None:
    """Raise in this process after a while."""
    import signal

    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than the limit of {seconds} s")

    if seconds is not None:
        signal.signal(signal.SIGALRM, late)
        signal.alarm(seconds)
