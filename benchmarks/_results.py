"""Stored results: one table per protocol and seed, a row per slide and method."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks._methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
KEY = ["file", "protocol", "seed", "method"]
_RECORD = [
    "date", "code", "versions", "machine", "threads", "workers", "hidden", "n_spots", "n_genes", "seconds", "memory_mib",
    "failed",
]  # fmt: skip
_TEXT = dict.fromkeys(("file", "protocol", "method", "date", "code", "versions", "machine", "hidden"), str)
_PACKAGES = (
    "lgdist-scvi", "scvi-tools", "torch", "lightning", "diffusers", "scanpy", "squidpy", "anndata", "numpy", "scipy",
    "scikit-learn",
)  # fmt: skip
# what every method's data and scores depend on
_SHARED = (
    "benchmarks/_protocols.py", "src/lgdist_scvi/_*.py", "src/lgdist_scvi/pp/*.py", "src/lgdist_scvi/metrics/**/*.py",
)  # fmt: skip
ALL = "all"  # in place of a method: why a slide is left out of a protocol


def installed() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def versions_digest(versions: dict[str, str]) -> str:
    """Short name of a set of versions; ``versions.csv`` beside the tables spells it out."""
    return hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:6]


def code_digest(method: str, methods: Mapping[str, Any] = METHODS, shared: Sequence[str] = _SHARED) -> str:
    """Digest of the source that a method's result depends on: it changes when a result is obsolete.

    Parameters
    ----------
    method
        One of `methods`; any other has no digest, ``""``.
    methods
        Objects with `run` and `sources`.
    shared
        Patterns of files that the results of all methods depend on.
    """
    if method not in methods:
        return ""
    digest = hashlib.sha256()
    for pattern in (*shared, *methods[method].sources):
        for file in sorted(REPOSITORY.glob(pattern)):
            digest.update(file.read_bytes())
    function, arguments = methods[method].run, ""
    if isinstance(function, partial):
        function, arguments = function.func, f"{function.args} {sorted(function.keywords.items())}"
    digest.update(f"{inspect.getsource(function)} {arguments}".encode())
    return digest.hexdigest()[:10]


def machine() -> str:
    """System, processor and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.processor() or "unknown processor")
    return f"{platform.system()} {platform.machine()}, {processor}, {os.cpu_count()} cores"


def read(folder: Path) -> pd.DataFrame:
    """All rows of a folder of results, one per slide, protocol, seed and method.

    Raises
    ------
    ValueError
        If a file is no table of results.
    """
    tables = []
    for path in sorted(folder.glob("*_seed*.csv")):
        try:
            table = pd.read_csv(path, dtype=_TEXT)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a table of results ({error}); delete it, or choose another folder"
            ) from error
        if missing := set(KEY) - set(table):
            raise ValueError(f"{path} has no column {sorted(missing)[0]!r}; delete it, or choose another folder")
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=[*KEY, *_RECORD])
    rows = pd.concat(tables, ignore_index=True)
    return rows if "failed" in rows else rows.assign(failed=None)


class Results:
    """The rows of a folder, which is whole at any time: a table is replaced at once after every row.

    Parameters
    ----------
    folder
        Of the tables; made when the first row is stored.
    again
        Take no stored row for current.
    digest
        Of a method: that of a row that is current.
    """

    def __init__(self, folder: Path, again: bool = False, digest: Callable[[str], str] = code_digest):
        self.folder, self._digest = folder, digest
        self.versions = versions_digest(installed())
        self._rows = {tuple(row[name] for name in KEY): row for row in read(folder).to_dict("records")}
        self._current = set() if again else {key for key, row in self._rows.items() if self._is_current(row)}

    def _is_current(self, row: dict) -> bool:
        if not pd.isna(row["failed"]) or row["versions"] != self.versions:
            return False
        return row["code"] == self._digest(row["method"])

    @property
    def rows(self) -> pd.DataFrame:
        """All rows, current or not."""
        return pd.DataFrame(list(self._rows.values()))

    def has(self, file: str, protocol: str, seed: int, method: str) -> bool:
        """Whether a row is there that today's code and versions would give again."""
        return (file, protocol, seed, method) in self._current

    def add(self, row: dict) -> None:
        """Store a row in place of an older one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows[tuple(row[name] for name in KEY)] = {"failed": None, **row, "versions": self.versions}
        part = self.rows
        part = part[(part["protocol"] == row["protocol"]) & (part["seed"] == row["seed"])]
        part = part.dropna(axis=1, how="all").sort_values(KEY)
        first = [name for name in (*KEY, *_RECORD) if name in part]
        for name in ("threads", "workers", "n_spots", "n_genes", "n"):  # a missing value turns integers into floats
            if name in part:
                part[name] = part[name].astype("Int64")
        self._write(
            f"{row['protocol']}_seed{row['seed']}.csv", part[[*first, *part.columns.difference(first, sort=False)]]
        )
        self._write_versions()

    def _write_versions(self) -> None:
        path = self.folder / "versions.csv"
        table = pd.read_csv(path, dtype=str) if path.exists() else pd.DataFrame({"versions": []})
        if self.versions not in set(table["versions"]):
            new = pd.DataFrame([{"versions": self.versions, **installed()}])
            self._write("versions.csv", pd.concat([table, new], ignore_index=True) if len(table) else new)

    def _write(self, name: str, table: pd.DataFrame) -> None:
        unfinished = self.folder / f"{name}.partial"
        table.to_csv(unfinished, index=False, float_format="%.8g")
        unfinished.replace(self.folder / name)
