"""The step that an optimiser takes at each coordinate, which is the metric of the proximal step after it.

A preconditioned gradient step ``w - eta * g`` with one ``eta_i`` for each coordinate is followed by

    argmin_u  sum_i (u_i - w_i)^2 / (2 eta_i) + penalty(u)

Optimisers that move all coordinates alike have one number, their learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ConfigError

Step = float | Tensor
"""``eta``: one number, or a tensor of the parameter's shape."""


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any]) -> Step:
    del state
    return float(group["lr"])


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any]) -> Step:
    if "square_avg" not in state:
        return 0.0
    average: Tensor = state["square_avg"]
    if group["centered"]:
        # torch's own expression; a variance that rounds to less than 0 is one of 0
        average = average.addcmul(state["grad_avg"], state["grad_avg"], value=-1).clamp_min(0.0)
    step: Tensor = float(group["lr"]) / (average.sqrt() + group["eps"])
    return step


def _adam(group: Mapping[str, Any], state: Mapping[str, Any]) -> Step:
    if "exp_avg_sq" not in state:
        return 0.0
    average: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
    step: Tensor = float(group["lr"]) / ((average / correction).sqrt() + group["eps"])
    return step


METRICS: dict[type[torch.optim.Optimizer], Callable[[Mapping[str, Any], Mapping[str, Any]], Step]] = {
    torch.optim.SGD: _sgd,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}
"""Optimiser type -> its step at each coordinate, from the parameter group's options and the parameter's state.

A parameter that has not been stepped yet has no state and a step of 0: nothing moved it, so nothing is to be undone.
"""


def steps(optimizer: torch.optim.Optimizer, parameters: list[tuple[str, nn.Parameter]]) -> list[Step]:
    """The step of each parameter, in the given order.

    Raises:
        ConfigError: the optimiser's type has no metric, or it does not train one of the parameters.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps the optimiser
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
        found.append(metric(of_parameter[id(parameter)], inner.state.get(parameter, {})))
    return found
