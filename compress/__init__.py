"""Make trained vision networks small and fast: train channels to exact zero, remove them, keep the function.

The names below are imported when they are first used, so that ``import compress`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.errors import CompressError
    from compress.optim import HardConcrete, Regularizer
    from compress.surgery import compact, load

__version__ = "0.1.0"
__all__ = ["CompressError", "HardConcrete", "Regularizer", "compact", "load"]

_HOME = {
    "CompressError": "compress.errors",
    "HardConcrete": "compress.optim",
    "Regularizer": "compress.optim",
    "compact": "compress.surgery",
    "load": "compress.surgery",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
