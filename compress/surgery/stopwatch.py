"""How long each stage of surgery took."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator


class Stopwatch:
    """Seconds by stage, added up over all its runs."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside towards ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start  # type: ignore[assignment]

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, in the order in which the stages first ended."""
        return {name: float(value) for name, value in self._seconds.items()}
