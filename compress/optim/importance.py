"""What each group is worth, in the terms of the proximal step that would drop it."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.groups import Groups, GroupSlice
from compress.optim.metric import Step


def importance(groups: Groups, weights: Tensor, steps: list[Step]) -> Tensor:
    """``sum_i w_i^2 / eta_i`` of every group, over its weight in the penalty: float64 ``[groups]`` on the CPU.

    In a proximal step with L0 the group with the smallest leaves first. Where no step has been taken ``eta`` is 1.

    Args:
        groups: the groups.
        weights: ``[groups]``; for single weights one number for all.
        steps: of each parameter, in the order of ``groups.parameters``.
    """
    if not groups.slices:
        pairs = zip(groups.weights, steps, strict=True)
        found = torch.cat([_worth(parameter.detach(), step).flatten() for (_, parameter), step in pairs])
    else:
        by_slice = {id(part): step for part, step in zip(groups.slices, steps, strict=True)}

        def worth(part: GroupSlice) -> Tensor:
            return _worth(part.parameter.detach(), by_slice[id(part)])

        found = groups.gather(worth)
    return (found / weights).double().cpu()


def _worth(w: Tensor, step: Step) -> Tensor:
    eta = torch.as_tensor(step, dtype=w.dtype, device=w.device)
    return w.square() / torch.where(eta > 0, eta, 1.0)
