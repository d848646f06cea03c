"""The share of frames that miss, and the interval that it lies in.

Clopper's and Pearson's interval is exact for frames that are missed independently (Biometrika 26, 1934). They are not:
one disturbance makes the neighbours late as well. So they count as fewer, `effective_count`, in the same formula
(Korn and Graubard, "Confidence Intervals for Proportions With Small Expected Number of Positive Counts Estimated From
Survey Data", Survey Methodology 24, 1998). In a chain whose lag-1 autocorrelation is r, the variance of a mean is
(1 + r) / (1 - r) times that of independent values.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import scipy

from bench.stats import CONFIDENCE

MOST_FRAMES = 1_000_000  # nobody feeds more: eight hours and more at 33 ms


def clopper_pearson(share: float, count: float) -> tuple[float, float]:
    """The interval of a share that was found in `count` independent trials, which need be no whole number."""
    hits, tail = share * count, (1 - CONFIDENCE) / 2
    low = scipy.stats.beta.ppf(tail, hits, count - hits + 1) if share > 0 else 0.0
    high = scipy.stats.beta.ppf(1 - tail, hits + 1, count - hits) if share < 1 else 1.0
    return float(low), float(high)


def effective_count(runs: Sequence[Sequence[bool]]) -> float:
    """As how many independent trials the trials of several processes count: at least one for each process."""
    every = np.concatenate([np.asarray(run, float) for run in runs])
    centred = [np.asarray(run, float) - every.mean() for run in runs]
    pairs = np.concatenate([run[1:] * run[:-1] for run in centred])
    if not every.var() or not len(pairs):
        return float(len(every))
    correlation = max(0.0, float(pairs.mean() / every.var()))
    return float(np.clip(len(every) * (1 - correlation) / (1 + correlation), len(runs), len(every)))


def share_of(runs: Sequence[Sequence[bool]]) -> float:
    """The share of True in the runs of several processes."""
    return sum(map(sum, runs)) / sum(map(len, runs))


def share_interval(runs: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """Its 95 % interval."""
    return clopper_pearson(share_of(runs), effective_count(runs))


def count_to_tell(runs: Sequence[Sequence[bool]], limit: float) -> int | None:
    """How many trials would tell the share from `limit`, if it and its bursts stayed as they are.

    None where no number up to `MOST_FRAMES` would.
    """
    share = share_of(runs)
    independent = effective_count(runs) / sum(map(len, runs))

    def told(count: int) -> bool:
        low, high = clopper_pearson(share, count * independent)
        return high <= limit if share <= limit else low > limit

    counts = range(1, MOST_FRAMES + 1)
    place = bisect_left(counts, True, key=told)
    return counts[place] if place < len(counts) else None
