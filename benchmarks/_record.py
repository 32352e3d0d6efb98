"""The file of results: rows, and what they were obtained with."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import platform
import shutil
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks._methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "lgdist-scvi", "scvi-tools", "torch", "lightning", "diffusers", "scanpy", "squidpy", "anndata", "numpy", "scipy",
    "scikit-learn",
)  # fmt: skip
# what every method's data and scores depend on
_SHARED = (
    "benchmarks/_protocols.py",
    "src/lgdist_scvi/_anndata.py",
    "src/lgdist_scvi/_checks.py",
    "src/lgdist_scvi/_expression.py",
    "src/lgdist_scvi/_moran.py",
    "src/lgdist_scvi/metrics/_arrays.py",
    "src/lgdist_scvi/metrics/_completion.py",
    "src/lgdist_scvi/metrics/_poisson.py",
    "src/lgdist_scvi/metrics/baselines",
    "src/lgdist_scvi/pp",
)
_KEY = ("file", "protocol", "seed", "method")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def code_of(method: str) -> str:
    """Digest of the source that a method's result depends on: changes when a result is obsolete."""
    digest = hashlib.sha256()
    for name in (*_SHARED, *METHODS[method].sources):
        path = REPOSITORY / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes() if file.is_file() else b"")
    function, arguments = METHODS[method].run, ""
    if isinstance(function, partial):
        function, arguments = function.func, f"{function.args} {sorted(function.keywords.items())}"
    digest.update(f"{inspect.getsource(function)} {arguments}".encode())
    return digest.hexdigest()[:10]


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Results:
    """Rows of a run in a JSON file that is whole at any time.

    Parameters
    ----------
    path
        The file; replaced at once after every row, under its name only when complete. ``None``: rows are kept in memory.
    threads, workers
        Of the run, for the record.
    resume
        Keep the rows that are there already, if they have the same versions.

    Attributes
    ----------
    dropped
        Number of rows of an earlier run that failed or have other versions or another code, and are run again; the file
        with them is kept as ``*.previous.json``.
    """

    def __init__(self, path: Path | None, threads: int = 1, workers: int = 1, resume: bool = False):
        self.path = path
        self.document: dict[str, Any] = {
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}, {processor()}",
            "cores": os.cpu_count(),
            "threads_per_method": threads,
            "methods_at_a_time": workers,
            "left_out": [],
            "results": [],
        }
        self.dropped = 0
        if resume and path is not None and path.exists():
            self._take(read(path))

    def _take(self, document: dict) -> None:
        rows = document["results"]
        kept = []
        if document["versions"] == self.document["versions"]:
            codes = {row["method"]: code_of(row["method"]) for row in rows if row["method"] in METHODS}
            if document["machine"] != self.document["machine"]:
                rows = [{"machine": document["machine"], **row} for row in rows]
            kept = [row for row in rows if codes.get(row["method"]) == row["code"] and "failed" not in row]
        self.dropped = len(rows) - len(kept)
        if self.dropped:
            shutil.copy(self.path, self.path.with_suffix(".previous.json"))
        self.document["results"] = kept

    @property
    def rows(self) -> list[dict]:
        """All rows."""
        return self.document["results"]

    def has(self, row: dict) -> bool:
        """Whether there is a result for this file, protocol, seed and method."""
        return any(all(other[key] == row[key] for key in _KEY) for other in self.rows)

    def leave_out(self, file: str, protocol: str, reason: str) -> None:
        """Record that a file is not scored, and why."""
        record = {"file": file, "protocol": protocol, "reason": reason}
        if record not in self.document["left_out"]:
            self.document["left_out"].append(record)

    def add(self, row: dict) -> None:
        """Add a row and store all."""
        self.rows.append(_plain(row))
        self.store()

    def store(self) -> None:
        """Write the file."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.partial")
        unfinished.write_text(json.dumps(self.document, indent=1, allow_nan=False) + "\n")
        unfinished.replace(self.path)


def read(path: Path) -> dict:
    """Read a file of results.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a file of results ({error}); delete it, or choose another --output") from error
    if not isinstance(document, dict) or not {"versions", "results"} <= set(document):
        raise ValueError(f"{path} holds no results of this benchmark; choose another --output")
    return document


def _plain(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
