"""Other weights of the network in training: their moving average, and those of the best epoch.

The average is ``a <- d a + (1 - d) w`` after every step, with ``d = min(decay, (1 + t) / (10 + t))`` in step ``t``, so
that early steps are soon forgotten (Polyak and Juditsky 1992; the warm-up is that of TensorFlow's
``ExponentialMovingAverage``). Running statistics of BatchNorm are averaged with the weights that made them.

A weight that the penalty has made exactly zero comes near to zero in an average, never to it. So the average is read
with the present weights' zeros: dead channels are dead in it too, whenever it is judged and when it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress.surgery import Plan
from compress.surgery.bake import private_copy
from compress.train.checkpoint import State

Weights = dict[str, Tensor]
"""Floating-point parameters and buffers by their state-dict names: copies, not those of a network."""


def live(model: nn.Module) -> Weights:
    """The tensors of the model itself: what is written into them changes it."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def taken(model: nn.Module) -> Weights:
    """A copy of the model's weights."""
    return {name: tensor.clone() for name, tensor in live(model).items()}


@torch.no_grad()
def put_(model: nn.Module, weights: Weights) -> None:
    """Copy weights into the model."""
    for name, tensor in live(model).items():
        tensor.copy_(weights[name])


@torch.no_grad()
def load_(weights: Weights, saved: Weights) -> None:
    """Copy saved weights into others of the same names, shapes and devices.

    Raises:
        KeyError, RuntimeError: Their names or shapes differ.
    """
    if weights.keys() != saved.keys():
        raise KeyError(min(weights.keys() ^ saved.keys()))
    for name, tensor in weights.items():
        tensor.copy_(saved[name])


def cut(weights: Weights, plan: Plan) -> Weights:
    """What a compaction leaves of them."""
    return {name: plan.parameters[name].cut(w) if name in plan.parameters else w for name, w in weights.items()}


def twin(model: nn.Module, weights: Weights) -> nn.Module:
    """A network of its own with these weights."""
    other = private_copy(model)
    put_(other, weights)
    return other


class Average:
    """The moving average of a model's weights.

    Args:
        model: Its present weights are where the average starts.
        decay: Between 0 and 1; about the last ``1 / (1 - decay)`` steps count.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._steps = 0
        self._values = taken(model)
        self._live = live(model)

    @torch.no_grad()
    def update_(self) -> None:
        """Add the model's weights, after a step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(list(self._values.values()), list(self._live.values()), 1.0 - decay)

    def weights(self) -> Weights:
        """The average, with the zeros of the model's parameters."""
        parameters = {name for name, _ in self._model.named_parameters(remove_duplicate=False)}
        return {
            name: value * (self._live[name] != 0) if name in parameters else value.clone()
            for name, value in self._values.items()
        }

    def cut_(self, plan: Plan) -> None:
        """Follow a compaction of the model, after it."""
        self._values = cut(self._values, plan)
        self._live = live(self._model)

    def state(self) -> State:
        """What ``load_state_`` needs; tensors are shared, not copied."""
        return {"steps": self._steps, "values": self._values}

    def load_state_(self, state: State) -> None:
        """Go on from ``state``, of an average of a model of the same shapes."""
        self._steps = state["steps"]
        load_(self._values, state["values"])


@contextmanager
def lent(model: nn.Module, weights: Weights) -> Iterator[None]:
    """The model has other weights inside; outside its own, bit for bit."""
    own = taken(model)
    put_(model, weights)
    try:
        yield
    finally:
        put_(model, own)
