"""The step that an optimiser takes at each coordinate, which is the metric of the proximal step after it.

A preconditioned gradient step ``w - eta * g`` with one ``eta_i`` for each coordinate is followed by

    argmin_u  sum_i (u_i - w_i)^2 / (2 eta_i) + penalty(u)

Optimisers that move all coordinates alike have one number, their learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """``eta`` of one parameter: ``rate / (sqrt(square - mean^2) + eps)``, or the ``rate`` alone.

    Attributes:
        rate: a number, at least 0; 0 where nothing moves.
        square: average of squared gradients, in the parameter's shape, if coordinates have steps of their own.
        mean: average of gradients, if the square is to be centred.
        eps: what keeps the step finite.
    """

    rate: float
    square: Tensor | None = None
    mean: Tensor | None = None
    eps: float = 0.0

    def denominator(self, cut: Callable[[Tensor], Tensor], out: Tensor) -> Tensor:
        """``rate / eta`` of some coordinates; 1 where nothing divides.

        Args:
            cut: takes them out of a tensor of the parameter's shape.
            out: in their shape; the result is written to it.
        """
        if self.square is None:
            return out.fill_(1.0)
        if self.mean is None:
            torch.sqrt(cut(self.square), out=out)
        else:
            # torch's own expression; a variance that rounds to less than 0 is one of 0
            mean = cut(self.mean)
            torch.addcmul(cut(self.square), mean, mean, value=-1, out=out).clamp_min_(0.0).sqrt_()
        return out.add_(self.eps) if self.eps else out.clamp_min_(torch.finfo(out.dtype).tiny)

    def eta(self, cut: Callable[[Tensor], Tensor], out: Tensor) -> Tensor | float:
        """The step of some coordinates (as in ``denominator``), or the one number of all."""
        if self.square is None:
            return self.rate
        return torch.div(torch.tensor(self.rate, dtype=out.dtype), self.denominator(cut, out), out=out)


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any]) -> Step:
    del state
    return Step(float(group["lr"]))


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any]) -> Step:
    if "square_avg" not in state:
        return Step(0.0)
    mean = state["grad_avg"] if group["centered"] else None
    return Step(float(group["lr"]), state["square_avg"], mean, group["eps"])


def _adam(group: Mapping[str, Any], state: Mapping[str, Any]) -> Step:
    if "exp_avg_sq" not in state:
        return Step(0.0)
    average: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    # lr / (sqrt(average / c) + eps), with c the correction for the average's start at 0
    root = math.sqrt(1.0 - float(group["betas"][1]) ** float(state["step"]))
    return Step(float(group["lr"]) * root, average, None, group["eps"] * root)


METRICS: dict[type[torch.optim.Optimizer], Callable[[Mapping[str, Any], Mapping[str, Any]], Step]] = {
    torch.optim.SGD: _sgd,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}
"""Optimiser type -> its step at each coordinate, from the parameter group's options and the parameter's state.

A parameter that has not been stepped yet has no state and a step of 0: nothing moved it, so nothing is to be undone.
"""


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser itself, which Accelerate wraps."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def steps(optimizer: torch.optim.Optimizer, parameters: list[tuple[str, nn.Parameter]]) -> list[Step]:
    """The step of each parameter, in the given order; 0 for what is frozen out of training (``requires_grad``).

    Raises:
        ConfigError: the optimiser's type has no metric, or it does not train one of the parameters.
    """
    inner = inner_optimizer(optimizer)
    metric = next((METRICS[cls] for cls in type(inner).__mro__ if cls in METRICS), None)
    if metric is None:
        known = ", ".join(cls.__name__ for cls in METRICS)
        raise ConfigError(
            f"no proximal step is known for the optimiser {type(inner).__name__}; known: {known}. "
            "Use one of these, or add_subgradient_() before the step."
        )
    of_parameter = {id(p): group for group in inner.param_groups for p in group["params"]}
    found: list[Step] = []
    for name, parameter in parameters:
        if id(parameter) not in of_parameter:
            raise ConfigError(
                f"the penalty acts on {name}, which the optimiser does not train; "
                "give the optimiser all parameters of the groups, or leave this part of the model out."
            )
        group, state = of_parameter[id(parameter)], inner.state.get(parameter, {})
        found.append(metric(group, state) if parameter.requires_grad else Step(0.0))
    return found
