"""Removing dead channels: exact, dense, certified."""

from compress.surgery.compact import CompactResult, compact
from compress.surgery.plan import Plan, load, load_weights, put_weights_, save_weights, weights_hash
from compress.surgery.report import CompactReport, LayerWidth

__all__ = [
    "CompactReport",
    "CompactResult",
    "LayerWidth",
    "Plan",
    "compact",
    "load",
    "load_weights",
    "put_weights_",
    "save_weights",
    "weights_hash",
]
