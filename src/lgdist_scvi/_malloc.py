"""What glibc does with memory that tensors leave: nothing of this is done with another C library."""

from __future__ import annotations

import ctypes
import platform

# of glibc's malloc.h; 32 MiB is the most that it takes for the latter
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = 2**29, 2**25  # bytes


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> None:
    """Let this process use again what tensors leave, instead of asking the system for it anew.

    Dask starts workers so that they give all of it back at once (``MALLOC_TRIM_THRESHOLD_``), and half of the time would go by
    in the system.
    """
    if (libc := _libc()) is not None:
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)


def give_back_freed_memory() -> None:
    """Give the system what tensors left: with whole transcriptomes more than a gibibyte after a stage."""
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
