"""Dead channels leave while the network still trains: ``penalty.compact_every``.

A compaction changes nothing that can be seen from outside: only channels leave that are zero, or that nobody reads, in
evaluation and in training mode alike. What the optimizer and the penalty know goes along (``compress.optim.slicing``).
What has left cannot come back. So a channel stays, though dead, as long as momentum alone would bring it back with the
next step; after that only a gradient could, and behind a ReLU a channel of zeros has none.

The plans of all compactions together say which entries of the first network remain. They are kept in the checkpoint, so
that a resumed run cuts a new network likewise. At the end ``expanded`` puts the weights back into their first shapes,
with zeros for what has left: masked weights and plan of a run are always those of the first network.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

import compress
from compress.errors import ModelError, VerificationError
from compress.graph import count_macs, trace
from compress.graph.modules import owners
from compress.optim.slicing import Piece
from compress.surgery import Plan
from compress.surgery.bake import baked_copy, double_copy, private_copy
from compress.surgery.compose import compose, restore_
from compress.surgery.kept import Kept
from compress.surgery.verify import certify
from compress.train.checkpoint import State, unmoved_generators
from compress.train.evaluate import max_abs_difference

TRAINING_TOLERANCE = 1e-8
"""Largest difference of outputs in training mode, in float64, relative to the largest output. Rounding stays below,
even where a BatchNorm magnifies it by 1 / sqrt(eps) = 316; a constant that shows in training mode alone does not."""


@dataclass(frozen=True)
class Compaction:
    """What one compaction came to.

    Attributes:
        plan: From the network before to the one after; None if nothing leaves.
        parameters: Before and after, if something leaves.
        macs: Multiply-accumulates for one image, likewise.
        refused: Why what is dead stays for now, if it does.
        seconds: How long it took to find and to prove.
    """

    plan: Plan | None = None
    parameters: tuple[int, int] | None = None
    macs: tuple[int, int] | None = None
    refused: str | None = None
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """For ``metrics.jsonl``: all but the plan."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "refused": self.refused,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        if self.refused is not None:
            return f"not compacted: {self.refused}"
        if self.parameters is None or self.macs is None:
            return f"nothing to compact  {self.seconds:.1f} s"
        parameters, macs = ("{:,} -> {:,}".format(*pair) for pair in (self.parameters, self.macs))
        return f"compacted  parameters {parameters}  MACs {macs}  {self.seconds:.1f} s"


def check_followed(model: nn.Module, example: Tensor) -> None:
    """Refuse, before it is trained, a network whose channels cannot be followed: the end of a run compacts it.

    Args:
        model: The network; neither it nor a generator is changed.
        example: Images ``[1, C, H, W]`` on its device.

    Raises:
        ModelError: It cannot be traced.
    """
    with unmoved_generators():
        try:
            trace(baked_copy(model), (example,))
        except ModelError as error:
            raise ModelError(
                f"{error}\nNothing was trained: a run ends by removing what is dead, which needs this."
            ) from error


def find_compaction(
    model: nn.Module,
    example: Tensor,
    images: Tensor,
    twins: Iterable[nn.Module] = (),
    *,
    coasted: nn.Module | None = None,
) -> Compaction:
    """What can leave ``model`` now, proved; the model is not changed, and no generator is moved.

    Args:
        model: The network in training.
        example: Images ``[1, C, H, W]`` to trace it with.
        images: Images ``[N, C, H, W]``, two or more, on which both networks are compared in training mode.
        twins: The same network with other weights, which are to be cut likewise; compared in evaluation mode.
        coasted: The same network after one more step without a gradient; what is dead must be dead in it too.
    """
    start_s = time.monotonic()
    with unmoved_generators():
        try:
            found = _find(model, example, images, model if coasted is None else coasted, twins)
        except (ModelError, VerificationError) as error:  # the run goes on as it is: it only takes longer
            found = Compaction(refused=str(error))
    return dataclasses.replace(found, seconds=time.monotonic() - start_s)


def _find(
    model: nn.Module, example: Tensor, images: Tensor, coasted: nn.Module, twins: Iterable[nn.Module]
) -> Compaction:
    result = compress.compact(_alive_in_either(model, coasted), (example,), fold=False, select="never")
    plan = Plan(result.plan.architecture, result.plan.parameters)  # cuts alone, whatever else the end may change
    if not plan.parameters:
        return Compaction()
    computed = plan.parameters.keys() - owners(model).keys()
    if computed:
        raise ModelError(f"{min(computed)} is computed in every step, by a pruning mask or a parametrization")
    small = private_copy(model)
    plan.reshape_(small)
    _check_in_training_mode(model, small, images)
    for twin in twins:
        _check_twin(twin, plan, images)
    macs = result.report.macs_before, count_macs(small, (example,))
    return Compaction(plan, (_size(model), _size(small)), macs)


@torch.no_grad()
def _alive_in_either(model: nn.Module, coasted: nn.Module) -> nn.Module:
    """A copy of ``model`` whose zeros have the values that they have in ``coasted``."""
    both = private_copy(model)
    for weights, later in zip(both.parameters(), coasted.parameters(), strict=True):
        weights.copy_(torch.where(weights == 0, later, weights))
    return both


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_in_training_mode(model: nn.Module, small: nn.Module, images: Tensor) -> None:
    """Compare both networks with the statistics of the batch, in float64.

    Raises:
        VerificationError: They differ, or do not run so.
    """
    try:
        expected, got = (_with_batch_statistics(network, images) for network in (model, small))
    except RuntimeError as error:
        raise VerificationError(f"training mode cannot be compared in float64: {error}") from error
    difference, largest = float((got - expected).abs().max()), float(expected.abs().max())
    if not difference <= TRAINING_TOLERANCE * largest:
        raise VerificationError(
            f"a channel that is dead in evaluation mode still acts in training mode: outputs differ by {difference:.1e}"
            f" (largest: {largest:.1e}). The running mean of a BatchNorm has yet to follow what feeds it"
        )


def _check_twin(twin: nn.Module, plan: Plan, images: Tensor) -> None:
    """Compare the twin with what the plan leaves of it, in evaluation mode, in float64.

    Raises:
        VerificationError: They differ.
    """
    twin = double_copy(twin)
    small = private_copy(twin)
    plan.reshape_(small)
    difference, largest = max_abs_difference(twin, small, images.double())
    if not difference <= TRAINING_TOLERANCE * largest:
        raise VerificationError(
            f"a dead channel still acts in averaged or in earlier weights: outputs differ by {difference:.1e} "
            f"(largest: {largest:.1e})"
        )


def _with_batch_statistics(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs, float64 ``[N, classes]``, without dropout, whose masks depend on the number of channels."""
    twin = double_copy(model).eval()
    for module in twin.modules():
        if isinstance(module, _NormBase):
            module.train()
    with torch.no_grad():
        outputs: Tensor = twin(images.double())
    return outputs


def cut_(model: nn.Module, plan: Plan) -> dict[nn.Parameter, Piece]:
    """Cut the model in place.

    Returns:
        Every parameter that was replaced, and its new form.

    Raises:
        CheckpointError: The plan was made for another model.
    """
    holders = owners(model)
    before = {name: getattr(*holders[name][0]) for name in plan.parameters if name in holders}
    plan.reshape_(model)
    cut = {}
    for name, old in before.items():
        if isinstance(old, nn.Parameter):
            numbers = torch.arange(old.numel(), device=old.device).reshape(old.shape)
            cut[old] = Piece(getattr(*holders[name][0]), plan.parameters[name].cut(numbers))
    return cut


def expanded(base: nn.Module, model: nn.Module, plans: Sequence[Plan], example: Tensor) -> nn.Module:
    """The network in its first shapes that computes what its compact form does: ``base``, with other weights.

    Args:
        base: The network as it was before the first compaction; its weights do not matter.
        model: After the last one.
        plans: Of all compactions, at least one.
        example: Images ``[1, C, H, W]`` for the comparison of the two.

    Raises:
        VerificationError: They differ.
    """
    restore_(base, functools.reduce(compose, plans), model.state_dict())
    certify(private_copy(base), private_copy(model), double_copy(model), (example,))
    return base


def plan_to_state(plan: Plan) -> State:
    """The plan as plain data, for a checkpoint."""
    return dataclasses.asdict(plan)


def plan_from_state(state: State) -> Plan:
    """The plan of ``plan_to_state``.

    Raises:
        TypeError, KeyError, ValueError: It is none.
    """
    parameters = {name: Kept(**kept) for name, kept in state["parameters"].items()}
    return Plan(**{**state, "parameters": parameters})
