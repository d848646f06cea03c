"""What this machine, or the container in it, gives to this process."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

GIB = 2**30

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the limits of a container (version 2): ``memory.max``, in bytes; ``cpu.max``, quota and period in
microseconds; ``max`` stands for no limit."""


def memory_gib() -> float:
    """Memory of the machine, or of the container if it has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        total = min(total, int((CGROUP / "memory.max").read_text()))
    return total / GIB


def core_count() -> int:
    """Cores that this process may keep busy, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(cores, 1)
