"""Running methods, each in a process of its own, and storing what comes out as it comes."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks._commands import quiet
from benchmarks._record import Results, code_of

# A server that has imported the heavy packages forks a fresh process for every method: its peak memory is its own, and it
# starts at once. Other systems start each from nothing.
_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_PRELOAD = ["benchmarks._protocols", "benchmarks._methods", "benchmarks._transformer", "benchmarks._spread", "scvi"]


@dataclass
class Job:
    """One row of the table to be: a method on a file, under a protocol, with a seed."""

    file: str
    protocol: str
    seed: int
    method: str

    @property
    def row(self) -> dict:
        """The row's key."""
        return {"file": self.file, "protocol": self.protocol, "seed": self.seed, "method": self.method}


def prepare(source: Path, target: Path, protocols: Iterable[str]) -> dict[str, str | None]:
    """Read a slide, choose its genes, and write it for the methods; why it is left out of each protocol."""
    quiet()
    from benchmarks._protocols import read, too_small

    adata, sample_key = read(source)
    adata.uns["benchmark_sample_key"] = sample_key or ""
    adata.write_h5ad(target)
    return {protocol: too_small(adata, protocol) for protocol in protocols}


def measure(prepared: Path, job: Job, threads: int, spread: bool) -> dict:
    """Hide, run the method, score: a row of the table."""
    quiet()
    import anndata as ad
    import numba
    import torch
    from threadpoolctl import threadpool_limits

    from benchmarks._methods import METHODS
    from benchmarks._protocols import task

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    row = {"hidden": None, "seconds": None, "memory_mib": None}
    with threadpool_limits(threads):
        adata = ad.read_h5ad(prepared)
        given = task(adata, adata.uns["benchmark_sample_key"] or None, job.protocol, job.seed)
        row |= {"hidden": given.fingerprint, "n_spots": given.adata.n_obs, "n_genes": given.adata.n_vars}
        row["memory_before_mib"] = peak_memory()
        start = time.perf_counter()
        prediction, model = METHODS[job.method].run(given, job.seed)
        row["seconds"] = time.perf_counter() - start
        row["memory_mib"] = peak_memory()
        row |= given.score(prediction)
        if spread and model is not None:
            from benchmarks._spread import spread_scores

            try:
                row["spread"] = spread_scores(model, given, job.seed)
            except Exception as error:  # noqa: BLE001  the scores of the prediction stand
                row["spread_failed"] = sentence(error)
    return row


def peak_memory() -> float:
    """Peak resident memory of this process so far, MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _child(connection: Connection, function: Callable, arguments: tuple) -> None:
    try:
        connection.send(("done", function(*arguments)))
    except BaseException as error:  # noqa: BLE001  one method's failure, whatever it is, must not stop the others
        connection.send(("failed", sentence(error)))


def sentence(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__


@dataclass
class _Running:
    process: multiprocessing.Process
    connection: Connection
    started: float
    tag: object

    def result(self, time_limit: float | None) -> tuple[str, object]:
        try:
            outcome = self.connection.recv() if self.connection.poll(0) else None
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            reason = "out of memory?" if code == -9 else f"exit code {code}"
            outcome = ("failed", f"its process ended without an answer ({reason})")
        if outcome is None:
            outcome = ("failed", f"took longer than the limit of {time_limit:.0f} s")
            self.process.kill()
        self.process.join()
        self.connection.close()
        return outcome


def in_processes(
    calls: Iterable[tuple[object, Callable, tuple]], workers: int = 1, time_limit: float | None = None
) -> Iterator[tuple[object, str, object]]:
    """Call functions, each in a fresh process and up to `workers` at a time.

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
    _CONTEXT.set_forkserver_preload(_PRELOAD)
    calls, running = iter(calls), []
    try:
        while True:
            while len(running) < workers and (call := next(calls, None)) is not None:
                tag, function, arguments = call
                receiver, sender = _CONTEXT.Pipe(duplex=False)
                process = _CONTEXT.Process(target=_child, args=(sender, function, arguments), daemon=True)
                process.start()
                sender.close()
                running.append(_Running(process, receiver, time.monotonic(), tag))
            if not running:
                return
            rest = None
            if time_limit is not None:
                rest = max(0.0, min(r.started for r in running) + time_limit - time.monotonic())
            ready = wait([r.connection for r in running], timeout=rest)
            for r in list(running):
                late = time_limit is not None and time.monotonic() - r.started >= time_limit
                if r.connection in ready or late:
                    running.remove(r)
                    yield r.tag, *r.result(time_limit)
    finally:
        for r in running:
            r.process.kill()


def run(
    files: dict[str, Path],
    protocols: list[str],
    seeds: list[int],
    methods: list[str],
    results: Results,
    scratch: Path,
    threads: int = 1,
    workers: int = 1,
    time_limit: float | None = None,
    spread: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Run every method on every task and store each row when it is there.

    Parameters
    ----------
    files
        Name and path of each slide.
    results
        Where rows go; those that are there are not run again.
    scratch
        Folder for the prepared slides.
    spread
        Score samples and intervals as well.
    say
        Called with a line for every row.
    """
    from benchmarks._methods import METHODS

    todo: list[Job] = []
    calls = ((name, prepare, (path, scratch / f"{name}.h5ad", protocols)) for name, path in files.items())
    left_out = {name: (state, answer) for name, state, answer in in_processes(calls, workers)}
    for name in files:
        state, answer = left_out[name]
        for protocol in protocols:
            reason = answer if state == "failed" else answer[protocol]
            if reason:
                say(f"left out: {name}, {protocol}: {reason}")
                results.leave_out(name, protocol, reason)
                continue
            jobs = [Job(name, protocol, seed, method) for seed in seeds for method in methods]
            todo += [job for job in jobs if protocol in METHODS[job.method].protocols and not results.has(job.row)]
    results.store()
    say(f"{len(todo)} results to obtain, {len(results.rows)} there already")
    codes = {method: code_of(method) for method in methods}
    calls = ((job, measure, (scratch / f"{job.file}.h5ad", job, threads, spread)) for job in todo)
    began = time.monotonic()
    for number, (job, state, answer) in enumerate(in_processes(calls, workers, time_limit), start=1):
        row = {**job.row, "date": date.today().isoformat(), "code": codes[job.method], "threads": threads}
        row |= answer if state == "done" else {"failed": answer}
        results.add(row)
        say(_line(number, len(todo), row, time.monotonic() - began))


HEADLINE = {"entry": "mse", "spot": "mse", "block": "mse", "thinning": "d2", "shallow": "d2"}


def _line(number: int, total: int, row: dict, seconds: float) -> str:
    if "failed" in row:
        outcome = f"failed: {row['failed']}"
    else:
        name = HEADLINE[row["protocol"]]
        value = "none" if row.get(name) is None else f"{row[name]:.4f}"
        outcome = f"{name} {value} ({row['seconds']:.0f} s, {row['memory_mib'] / 1024:.1f} GiB)"
    return f"[{number}/{total}, {seconds / 60:.0f} min] {row['file']} {row['protocol']} seed {row['seed']} {row['method']}: {outcome}"
