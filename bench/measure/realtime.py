"""Real time: frames at a fixed period, as a camera gives them, and how many results come after the deadline.

Frame k arrives at k periods, whatever the model does: the source does not wait. A frame that arrives while another is
computed waits; if a newer one arrives meanwhile, it is dropped, since an old picture is of no use. Its response counts
from its arrival: the waiting is in it, and so is the time that the sleeping process needs to wake up. A frame whose
response is longer than the deadline, or that was dropped, is missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from bench.errors import BenchError
from bench.protocol import MeasuredModel, PeriodicSamples, Request
from bench.report import Frames, Realtime
from bench.shares import share_of
from bench.units import NS_PER_MS

LONGEST_MS = 1e6
PROCESSES = 3  # for each model: misses in a row need long runs, and one process alone may be lucky with its memory


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """What real time means to the user.

    Attributes:
        deadline_ms: From a frame's arrival to its result.
        period_ms: From a frame to the next; as long as the deadline by default.
        frames: Of each model, over all processes.
    """

    deadline_ms: float
    period_ms: float | None = None
    frames: int = 300

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, all faults at once."""
        times = {"deadline_ms": self.deadline_ms, "period_ms": self.period_ms}
        faults = [
            f"{name} is {value:g}, expected 0.01 or more, below {LONGEST_MS:,.0f}"
            for name, value in times.items()
            if value is not None and not 0.01 <= value < LONGEST_MS
        ]
        if self.frames < 1:
            faults.append(f"frames is {self.frames}, expected at least 1")
        if faults:
            raise BenchError("; ".join(faults))

    @property
    def every_ms(self) -> float:
        """The period."""
        return self.deadline_ms if self.period_ms is None else self.period_ms


def requests(deadline: Deadline, template: Request) -> list[Request]:
    """A process for each model, in turn, and so `PROCESSES` times; fewer where there are fewer frames."""
    shares = [-(-(deadline.frames - process) // PROCESSES) for process in range(min(PROCESSES, deadline.frames))]
    return [
        replace(
            template,
            measure="periodic",
            models=(path,),
            min_samples=share,
            period_ns=round(deadline.every_ms * NS_PER_MS),
        )
        for share in shares
        for path in template.models
    ]


def realtime(deadline: Deadline, measured: Sequence[MeasuredModel], models: int) -> Realtime:
    """The figures from the answers to `requests`.

    Raises:
        BenchError: An answer holds no frames.
    """
    runs = [model.periodic for model in measured if model.periodic is not None]
    if len(runs) != len(measured):
        raise BenchError("worker's answer: periodic is missing; the worker is not the one of this bench")
    figures = [frames(runs[place::models], deadline.deadline_ms) for place in range(models)]
    return Realtime(
        deadline_ms=deadline.deadline_ms,
        period_ms=deadline.every_ms,
        model=figures[0],
        baseline=figures[1] if models > 1 else None,
    )


def frames(runs: Sequence[PeriodicSamples], deadline_ms: float) -> Frames:
    """One model's figures; rows of missed frames end with their process."""
    missed = missed_frames(runs, deadline_ms)
    responses = [response for run in runs for response in run.response_ns if response is not None]
    p50, p99 = np.quantile(responses, (0.5, 0.99)) / NS_PER_MS
    count = sum(len(run) for run in missed)
    return Frames(
        frames=count,
        missed=sum(map(sum, missed)),
        dropped=count - len(responses),
        missed_share=share_of(missed),
        longest_run=max(longest_run(run) for run in missed),
        response_p50_ms=float(p50),
        response_p99_ms=float(p99),
        inference_p50_ms=float(np.median([time for run in runs for time in run.inference_ns])) / NS_PER_MS,
        runs=tuple(runs),
    )


def missed_frames(runs: Sequence[PeriodicSamples], deadline_ms: float) -> list[list[bool]]:
    """Of each frame of each process, whether it was missed."""
    return [[response is None or response > deadline_ms * NS_PER_MS for response in run.response_ns] for run in runs]


def longest_run(missed: Sequence[bool]) -> int:
    """The most True values in a row."""
    return max((sum(1 for _ in group) for value, group in groupby(missed) if value), default=0)
