"""Learning rate and strength as pure functions of time, so that a resumed run needs no schedule's state.

Time is counted in epochs and is fractional: step ``i`` of ``n`` in epoch ``e`` is at ``e + i / n``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from compress.train.config import Config, ScheduleSection

Factor = Callable[[float], float]


def _constant(_share: float) -> float:
    return 1.0


def _step(share: float) -> float:
    """Divide by 10 at 50% and at 75% of the epochs (the CIFAR schedule of ResNet and network slimming)."""
    return 0.1 ** ((share >= 0.5) + (share >= 0.75))


def _cosine(share: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, SGDR, 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


LR_SCHEDULES: dict[str, Factor] = {"constant": _constant, "step": _step, "cosine": _cosine}
"""Name -> factor of the learning rate by the share of all epochs that has passed, in [0, 1)."""


STRENGTH_SCHEDULES: dict[str, Factor] = {"constant": _constant, "step": _step, "cosine": _cosine}
"""Name -> factor of the strength by the share that has passed of the penalty's epochs after its warm-up, in [0, 1]."""


def _ramp(time_epochs: float, over_epochs: float) -> float:
    return min(1.0, time_epochs / over_epochs) if over_epochs > 0 else 1.0


def lr_at(time_epochs: float, lr: float, schedule: ScheduleSection, *, step_epochs: float) -> float:
    """Learning rate of the step that starts at ``time_epochs`` and is ``step_epochs`` long.

    The warm-up counts the step itself, so that the first one moves.
    """
    share = time_epochs / schedule.epochs
    return lr * LR_SCHEDULES[schedule.lr_schedule](share) * _ramp(time_epochs + step_epochs, schedule.warmup_epochs)


def strength_at(time_epochs: float, config: Config) -> float:
    """Strength of the penalty at ``time_epochs``; what happens after ``penalty_epochs`` is the loop's business."""
    penalty = config.penalty
    left = config.penalty_epochs - penalty.warmup_epochs
    share = min(max((time_epochs - penalty.warmup_epochs) / left, 0.0), 1.0) if left > 0 else 0.0
    factor = STRENGTH_SCHEDULES[penalty.strength_schedule](share)
    return penalty.strength * factor * _ramp(time_epochs, penalty.warmup_epochs)
