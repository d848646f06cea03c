"""``prune_``: judge, choose, zero; what is zero is left for ``compress.compact`` to remove."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.graph import channel_graph
from compress.pruning.candidates import Candidates, find_candidates, removed_classes
from compress.pruning.choice import Choice, choose, make_goal
from compress.pruning.cost import COSTS
from compress.pruning.criterion import Batch
from compress.pruning.policy import Policy
from compress.pruning.target import Target
from compress.surgery import CompactReport, compact
from compress.surgery.rounding import find_rounded

ATTEMPTS = 8
"""How often a choice may be corrected by what surgery makes of it: once or twice where a dead channel must stay as a
carrier, a few times where ``forward`` splits its channels."""


@dataclass(frozen=True)
class PruneReport:
    """What was zeroed, and what is left when it is removed.

    Attributes:
        groups: coupled groups that were alive before.
        zeroed: those that were made zero.
        fixed: those that could not be chosen: the criterion cannot judge them, the groups of a convolution cannot lose
            them evenly, or surgery cannot take them out of this ``forward``.
        params_before: parameters of the compact form before; ``params_after`` now.
        macs_before: its multiply-accumulates for the example inputs; ``macs_after`` likewise.
        highest_zeroed: the largest score that was zeroed, ``lowest_kept`` the smallest that was not, if any.
        layers: layer -> its output channels in the compact form before, and now.
    """

    groups: int
    zeroed: int
    fixed: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    highest_zeroed: float
    lowest_kept: float | None
    layers: dict[str, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return dataclasses.asdict(self)


def prune_(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    target: Target,
    policy: Policy | None = None,
    batches: Iterable[Batch] = (),
) -> PruneReport:
    """Zero the least important coupled groups of ``model``, in place, until its compact form meets ``target``.

    A group is zeroed whole: filters, biases, BatchNorm scales and shifts, so that its channels are exactly zero and
    ``compress.compact`` can remove them. What is dead already counts as gone. The cost of a choice is computed exactly,
    then tried: the network is compacted, and the choice corrected where something had to stay.

    Example::

        from compress.pruning import Policy, Target, prune_, recalibrate_

        prune_(model, (x,), Target("params", 0.3), Policy("taylor"), batches=loader)
        recalibrate_(model, (images for images, _ in loader))
        result = compress.compact(model, (x,))

    Args:
        model: the network; its weights change, unless an error is raised.
        example_inputs: one tensor for each argument of ``forward``; with batch size 1, so that multiply-accumulates are
            counted for one sample.
        target: when to stop. Multiply-accumulates and parameters are those of the compact form; shares are of what it
            is before, and 1% of that is how near the result comes.
        policy: how to choose; by default magnitude over the whole network.
        batches: (images, labels) of the *training* data, on the model's device; for criteria that read images.

    Raises:
        ConfigError: the target cannot be reached, or the criterion cannot judge this network.
        ModelError: the model can't be traced.
        ConstantOutputError: it would return the same for every input.
        VerificationError: its compact form would compute something else.
    """
    policy = policy or Policy()
    if policy.per_layer and target.kind == "threshold":
        raise ConfigError("target threshold looks at each group by itself: per_layer would change nothing")
    candidates = find_candidates(model, example_inputs, policy, batches)
    goal = make_goal(target, model, candidates)
    excluded, surplus = torch.zeros_like(candidates.gone), 0.0
    with _unchanged_on_error(candidates) as undo_:
        for _ in range(ATTEMPTS):
            choice = choose(candidates, goal, policy, excluded=excluded, surplus=surplus)
            candidates.zero_(choice.leaving)
            result = compact(model, example_inputs, round_to=policy.round_to)
            stuck = choice.leaving & ~removed_classes(candidates.graph, result.plan)
            refused = _refused(model, example_inputs, stuck, policy.round_to)
            if policy.round_to > 1 and bool(stuck.any()) and not bool(refused.any()):  # they would be zero for nothing
                undo_()
                choice = replace(choice, leaving=choice.leaving & ~stuck)
                if not bool(choice.leaving.any()):
                    raise goal.no_block(policy)
                candidates.zero_(choice.leaving)
                result = compact(model, example_inputs, round_to=policy.round_to)
            missed = target.cost(result.report) - goal.value if target.kind in COSTS else 0.0
            if bool(refused.any()):  # forward splits the channels of these layers: others of them would fare no better
                excluded |= torch.isin(candidates.layers, candidates.layers[refused])
            elif abs(missed) > goal.tolerance:
                surplus += missed
            else:
                return _report(candidates, choice, result.report)
            undo_()
        raise goal.refusal(goal.value + missed, goal.value, policy)


def _refused(model: nn.Module, example_inputs: tuple[Tensor, ...], stuck: Tensor, round_to: int) -> Tensor:
    """Those of the zeroed classes ``stuck`` that surgery could not take out of this ``forward``: bool ``[classes]``.

    A dead channel that stays for a good reason, as a carrier or to fill a block, is none of them: another would stay in
    its place.
    """
    if not bool(stuck.any()):
        return stuck
    graph = channel_graph(model, example_inputs)
    return stuck & find_rounded(graph, pinned=torch.zeros_like(stuck), fold=True, round_to=round_to).removed


@contextmanager
def _unchanged_on_error(candidates: Candidates) -> Iterator[Callable[[], None]]:
    """Yields a function that gives the groups their weights back; it is called if anything is raised inside."""
    before = [(parameter, parameter.detach().clone()) for _, parameter in candidates.groups.parameters]

    def undo_() -> None:
        for parameter, weights in before:
            parameter.detach().copy_(weights)

    try:
        yield undo_
    except BaseException:
        undo_()
        raise


def _report(candidates: Candidates, choice: Choice, report: CompactReport) -> PruneReport:
    alive = candidates.alive
    zeroed, considered, scores = choice.leaving[alive], choice.considered[alive], candidates.scores[alive]
    kept = scores[considered & ~zeroed]
    before = candidates.compact
    return PruneReport(
        groups=len(alive),
        zeroed=int(zeroed.sum()),
        fixed=int((~considered).sum()),
        params_before=before.params_after if before else report.params_before,
        params_after=report.params_after,
        macs_before=before.macs_after if before else report.macs_before,
        macs_after=report.macs_after,
        highest_zeroed=float(scores[zeroed].max()),
        lowest_kept=float(kept.min()) if len(kept) else None,
        layers={
            layer: (before.layers[layer].after if before else width.before, width.after)
            for layer, width in report.layers.items()
        },
    )
