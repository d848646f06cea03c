"""Proximal steps around any torch optimiser."""

from compress.optim.regularizer import GROUP_WEIGHTS, LayerSparsity, Regularizer

__all__ = ["GROUP_WEIGHTS", "LayerSparsity", "Regularizer"]
