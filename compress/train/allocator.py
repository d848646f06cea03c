"""The C library's memory allocator, set for training."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_INT = 2**31 - 1
KEPT_BYTES = 2**28
"""A larger block goes back to the system when it is freed; few tensors on a CPU are."""


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for the next tensor of that size.

    By default glibc returns memory to the system as soon as some megabytes at the heap's end are free, and the system
    hands it out page by page again, zeroed, in the next step: a small network feels that. Nothing that is computed
    changes; the process holds on to the most that it has needed.

    Returns:
        Whether there was something to set; only glibc has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT) and mallopt(M_MMAP_THRESHOLD, KEPT_BYTES))
