"""Proximal steps around any torch optimiser, and hard-concrete gates."""

from compress.optim.gates import HardConcrete
from compress.optim.regularizer import GROUP_WEIGHTS, LayerSparsity, Regularizer

__all__ = ["GROUP_WEIGHTS", "HardConcrete", "LayerSparsity", "Regularizer"]
