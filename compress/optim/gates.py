"""Hard-concrete gates: an L0 penalty with a derivative.

Source: Louizos, Welling and Kingma 2018, "Learning sparse neural networks through L0 regularization". Every group of
weights is multiplied by a random gate ``z`` in [0, 1] that is exactly 0, and exactly 1, with a probability above zero;
the expected number of open gates is the penalty, and has a derivative. After training each gate takes its fixed value,
which is multiplied into the weights once and for all: a closed gate leaves exact zeros behind.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compress.errors import ConfigError
from compress.groups import Groups, GroupSlice, find_groups
from compress.optim.regularizer import GROUP_WEIGHTS, LayerSparsity, check_group_weights, layer_sparsity

GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3
"""The stretch of the concrete distribution to (GAMMA, ZETA) before it is clamped, and its temperature: the paper's."""

_SHIFT = BETA * math.log(-GAMMA / ZETA)


class HardConcrete(nn.Module):
    """A network whose groups of weights have stochastic gates.

    Example::

        gated = compress.HardConcrete(model, "coupled", strength=1e-4, example_inputs=(x[:1],))
        optimizer = torch.optim.Adam([{"params": model.parameters()}, {"params": [gated.log_alpha], "lr": 0.1}])
        (criterion(gated(x), y) + gated.penalty()).backward()   # and optimizer.step(), as ever
        gated.fold_()                                           # at the end: model has exact zeros

    In training mode gates are drawn anew for each call, one for all images of the batch; in evaluation mode each has
    its fixed value, so that the gated network computes what the folded one will.

    A gate multiplies every weight of its group, as in the paper, but for filters that a BatchNorm of the same group
    normalises: their scale has no effect on the output, while random scales would spoil the running variance. They get
    their zeros when the gates are folded.

    Attributes:
        model: the network; its parameters are shared, not copied.
        log_alpha: ``[groups]``, where each gate's distribution lies; the larger, the more open.
        groups: of the model.

    Args:
        model: the network.
        granularity: a name in ``compress.groups.GRANULARITIES``, but not ``weight``.
        strength: factor of the penalty.
        example_inputs: what ``forward`` takes.
        group_weights: a name in ``GROUP_WEIGHTS``: what an open gate costs.
        open_at_start: the probability, in (0, 1), with which log-alpha starts: its sigmoid.

    Raises:
        ConfigError: an unknown name, a number out of range, or no group to act on.
        ModelError: the model can't be traced.
    """

    _factors: Tensor

    def __init__(
        self,
        model: nn.Module,
        granularity: str,
        strength: float,
        *,
        example_inputs: tuple[Tensor, ...],
        group_weights: str = "none",
        open_at_start: float = 0.9,
    ):
        super().__init__()
        _check(granularity, strength, open_at_start)
        self.model = model
        self.strength = strength
        self.group_weights = group_weights
        self.groups: Groups = find_groups(model, granularity, example_inputs)
        check_group_weights(group_weights, self.groups, granularity)
        first = self.groups.slices[0].parameter
        start = math.log(open_at_start / (1 - open_at_start))
        self.log_alpha = nn.Parameter(torch.full((self.groups.count,), start, device=first.device))
        self.folded = False
        factors = GROUP_WEIGHTS[group_weights](self.groups)
        self.register_buffer("_factors", factors.to(self.log_alpha), persistent=False)
        # one input channel, or one kernel, is no scale of a filter
        normalised = set() if granularity in ("channel", "kernel") else _normalised(model, example_inputs)
        self._gated = [part for part in self.groups.slices if part.parameter not in normalised]
        self._masked = [part for part in self.groups.slices if part.parameter in normalised]
        self._check_that_gates_act()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the model returns, with every group multiplied by its gate."""
        if self.folded:
            return self.model(*inputs, **options)
        gates = self.draw() if self.training else self.gates()
        return functional_call(self.model, self._weights(gates, final=not self.training), inputs, options)

    def draw(self) -> Tensor:
        """Random gates ``[groups]`` in [0, 1], with a derivative by ``log_alpha``."""
        tiny = torch.finfo(self.log_alpha.dtype).eps
        noise = torch.rand_like(self.log_alpha).clamp(tiny, 1 - tiny).logit()
        return _stretched(((noise + self.log_alpha) / BETA).sigmoid())

    def gates(self) -> Tensor:
        """The fixed gates ``[groups]`` of evaluation: ``clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)``."""
        return _stretched(self.log_alpha.sigmoid())

    def penalty(self) -> Tensor:
        """``strength`` times the expected number of open gates, each weighted by its group: a scalar for the loss.

        ``P(z != 0) = sigmoid(log_alpha - beta log(-gamma / zeta))``; 0 once the gates are folded.
        """
        if self.folded:
            return self.log_alpha.new_zeros(())
        return self.strength * (self._factors * (self.log_alpha - _SHIFT).sigmoid()).sum()

    @torch.no_grad()
    def fold_(self) -> nn.Module:
        """Multiply the fixed gates into the weights, for good; what is closed becomes exactly zero.

        Returns:
            The model, which computes now what the gated network did in evaluation mode.
        """
        if not self.folded:
            weights = self._weights(self.gates(), final=True)
            for part in self.groups.slices:
                part.parameter.copy_(weights[part.name])
            self.folded = True
        return self.model

    @torch.no_grad()
    def sparsity(self) -> dict[str, LayerSparsity]:
        """Closed and all gates, by layer."""
        return layer_sparsity(self.groups, self.groups.dead() if self.folded else self.gates() == 0)

    @torch.no_grad()
    def closed_share(self) -> float:
        """The share of groups whose gate is closed."""
        return float((self.groups.dead() if self.folded else self.gates() == 0).double().mean())

    def gate_state(self) -> dict[str, Any]:
        """What the gates need beside the model's own state."""
        return {"log_alpha": self.log_alpha.detach(), "folded": self.folded}

    @torch.no_grad()
    def load_gate_state_(self, state: dict[str, Any]) -> None:
        """Go on from ``gate_state``."""
        self.log_alpha.copy_(state["log_alpha"])
        self.folded = state["folded"]

    def _check_that_gates_act(self) -> None:
        acts = torch.zeros(self.groups.count + 1, dtype=torch.bool)
        acts[-1] = True  # in no group
        for part in self._gated:
            acts[part.index().cpu()] = True
        for part in self.groups.slices:
            if not bool(acts[part.index().cpu()].all()):
                raise ConfigError(
                    f"hard-concrete gates on {part.name} would do nothing: a BatchNorm behind it undoes every scale. "
                    "Use granularity 'coupled' or 'bn-scale', whose groups hold the BatchNorm's own scale."
                )

    def _weights(self, gates: Tensor, *, final: bool) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for part in self._gated:
            weights[part.name] = weights.get(part.name, part.parameter) * _spread(part, gates)
        for part in self._masked if final else ():
            weights[part.name] = weights.get(part.name, part.parameter) * _spread(part, (gates > 0).to(gates))
        return weights


def _check(granularity: str, strength: float, open_at_start: float) -> None:
    if granularity == "weight":
        raise ConfigError("hard-concrete gates act on groups, got granularity 'weight'; use 'filter' or 'coupled'.")
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigError(f"hard-concrete strength: got {strength}, expected a finite number >= 0.")
    if not 0 < open_at_start < 1:
        raise ConfigError(f"open_at_start: got {open_at_start}, expected a probability above 0 and below 1.")


def _stretched(concrete: Tensor) -> Tensor:
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _spread(part: GroupSlice, by_group: Tensor) -> Tensor:
    return part.spread(torch.cat((by_group, by_group.new_ones(1)))).to(part.parameter.dtype)


def _normalised(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> set[nn.Parameter]:
    """Weights and biases of layers whose output goes into a BatchNorm just as it is."""
    made: dict[int, tuple[Tensor, nn.Module]] = {}
    found: set[nn.Parameter] = set()

    def made_by(layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = output, layer  # the tensor is held, so that its id stays its own

    def read_by(norm: nn.Module, inputs: tuple[object, ...]) -> None:
        del norm
        if id(inputs[0]) in made:
            found.update(made[id(inputs[0])][1].parameters(recurse=False))

    hooks = [m.register_forward_hook(made_by) for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    hooks += [m.register_forward_pre_hook(read_by) for m in model.modules() if isinstance(m, _NormBase)]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return found
