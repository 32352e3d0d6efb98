"""How much memory is free, and questions whose answers would not fit in it."""

from __future__ import annotations

from pathlib import Path

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def free_memory() -> float:
    """Bytes of memory that are free, infinite where the system does not say."""
    free = [_number(line) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    limit, used = ("/sys/fs/cgroup/memory." + what for what in ("max", "current"))  # of a container
    for most, now in zip(_lines(limit), _lines(used), strict=False):
        if most.isdigit():
            files = [_number(line) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file")]
            free.append(_number(most) - _number(now) + sum(files))  # what was read of files gives way
    return min(free, default=float("inf"))


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.is_file() else []


def _number(line: str) -> int:
    return int("".join(letter for letter in line if letter.isdigit()))


def as_text(n_bytes: float) -> str:
    """A number of bytes, for people: ``"9.8 GB"``."""
    power = 0
    while n_bytes >= 1000 and power < len(_UNITS) - 1:
        n_bytes, power = n_bytes / 1000, power + 1
    return f"{n_bytes:,.0f} {_UNITS[power]}" if power < 2 else f"{n_bytes:,.1f} {_UNITS[power]}"


def check_fits(shape: tuple[int, ...], n_bytes: int, remedy: str = "indices= and gene_list= ask for a part") -> None:
    """Refuse an answer, before it is begun, that takes more than half of the free memory (MemoryError)."""
    free = free_memory()
    if n_bytes > free / 2:
        what = " x ".join(f"{length:,}" for length in shape)
        raise MemoryError(
            f"the answer, {what} values, takes {as_text(n_bytes)}, more than half of the {as_text(free)} of memory that are free; "
            f"complete(store=...) writes blocks to a disk, and {remedy}"
        )
