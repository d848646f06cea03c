"""What each group is worth, in the terms of the proximal step that would drop it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from compress.groups import Groups, at_least_single
from compress.optim.blocks import Layout, Passes
from compress.optim.metric import Step
from compress.optim.proximal import weighted_squares


def importance(groups: Groups, weights: Tensor, steps: list[Step]) -> Tensor:
    """``sum_i w_i^2 / eta_i`` of every group, over its weight in the penalty: float64 ``[groups]`` on the CPU.

    In a proximal step with L0 the group with the smallest leaves first. Where no step has been taken ``eta`` is 1.

    Args:
        groups: the groups.
        weights: ``[groups]``; for single weights one number for all.
        steps: of each parameter, in the order of ``groups.parameters``.
    """
    taken = [step if step.rate > 0 else dataclasses.replace(step, rate=1.0) for step in steps]
    if groups.slices:
        found = weighted_squares(Passes(Layout(groups), taken))
    else:
        pairs = zip(groups.weights, taken, strict=True)
        found = torch.cat([_worth(parameter.detach(), step).flatten() for (_, parameter), step in pairs])
    return (found / weights).double().cpu()


def _worth(w: Tensor, step: Step) -> Tensor:
    w = at_least_single(w)
    return w.square() * step.denominator(lambda tensor: tensor, torch.empty_like(w)) / step.rate
