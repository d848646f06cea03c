"""Quantiles and bootstrap intervals of samples taken in several processes.

What varies, and at which scale (measured with one model against itself): neighbouring inferences share the scheduler's
and the neighbours' disturbances, so samples in one process are autocorrelated; and where a session's weights come to
lie in memory makes it up to 3 % faster or slower for as long as its process lives. An interval from the samples of one
process knows only the first: A against A then differs "significantly" in most runs. Hence the samples come from
several fresh processes, and the process is the unit of the bootstrap: whole blocks of paired samples are drawn, which
keeps pairs and autocorrelation as they were. Drawing samples within the blocks once more would count their noise
twice; for nested data, drawing at the top level alone is the better choice (Davison and Hinkley, "Bootstrap Methods and
their Application", 1997, section 3.8).

A percentile interval from so few units is too narrow by two causes: the bootstrap's variance misses the factor
n/(n-1), and normal quantiles stand for Student's. Both are mended in the level: the percentiles taken are
Phi(-+ sqrt(n/(n-1)) t(1 - alpha/2, n-1)), the "expanded percentile interval" (Hesterberg, "What Teachers Should Know
About the Bootstrap", The American Statistician 69, 2015, section 4.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy  # its stats are loaded where they are first used: a second that most commands need not wait for
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000  # the expanded percentiles lie at 1 % and below: a hundred resamples beyond each
SEED = 0  # the same samples give the same interval
# Simulated with drift between runs, 95 % intervals of 6 runs or more cover the truth in 92 to 96 %, of 5 in 90 %.
MIN_RUNS = 6
ROUNDING = 1e-9  # of a sum of shares; a single sample is a larger step
FAR_OUT = 3.0  # Tukey's outer fence, in interquartile ranges above the upper quartile


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A model's figure over its baseline's with its 95 % interval; below 1 the model is the smaller."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` if the whole interval says so, else ``not distinguishable``."""
        if self.high < 1:
            return "faster"
        return "slower" if self.low > 1 else "not distinguishable"


def expanded_tail(runs: int) -> float:
    """Share of resamples to leave out at each end, for `runs` units."""
    t = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, runs - 1)
    return float(scipy.stats.norm.cdf(-np.sqrt(runs / (runs - 1)) * t))


@cache
def resampled_counts(runs: int) -> NDArray[np.int64]:
    """How often each of `runs` units is in each resample: shape (RESAMPLES, runs), rows sum to `runs`."""
    return np.random.default_rng(SEED).multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES)


def interval(resampled: Floats, runs: int) -> tuple[float, float]:
    """The expanded percentile interval of a statistic's resamples."""
    tail = expanded_tail(runs)
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def ratio_of_medians(model: Sequence[Sequence[int]], baseline: Sequence[Sequence[int]]) -> Ratio:
    """Geometric mean over runs of the ratio of medians, with its interval.

    Args:
        model: Samples of each run, in any unit.
        baseline: The baseline's in the same runs, same unit.
    """
    logs = np.log([np.median(ours) / np.median(theirs) for ours, theirs in zip(model, baseline, strict=True)])
    runs = len(logs)
    low, high = interval(resampled_counts(runs) @ logs / runs, runs)
    return Ratio(value=float(np.exp(logs.mean())), low=float(np.exp(low)), high=float(np.exp(high)))


def ratio_of_sessions(model: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Ratio of geometric means of figures from runs of two sessions, which make no pairs, with Welch's interval.

    It holds what differs from run to run of one session. What the machine did to one whole session and not to the
    other is in no figure, and no interval can tell it.

    Args:
        model: A positive figure of each run, in any unit.
        baseline: The same, of the other session.
    """
    logs = np.log(model), np.log(baseline)
    difference = float(logs[0].mean() - logs[1].mean())
    if np.ptp(logs[0]) == 0 and np.ptp(logs[1]) == 0:
        low = high = difference
    else:
        found = scipy.stats.ttest_ind(*logs, equal_var=False).confidence_interval(CONFIDENCE)
        low, high = float(found.low), float(found.high)
    return Ratio(value=float(np.exp(difference)), low=float(np.exp(low)), high=float(np.exp(high)))


def median_interval(runs: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Interval of the median of all runs' samples, each run with the same weight; in the samples' unit."""
    return quantile_interval(runs, 0.5)


def quantile_interval(runs: Sequence[Sequence[int]], share: float) -> tuple[float, float]:
    """Interval of the value that `share` of all runs' samples do not exceed, each run with the same weight.

    A resample's quantile is where the mean of its runs' distribution functions reaches `share`: the functions are
    tabulated once, on the values between the smallest and the largest quantile of a run, where every such one lies.
    """
    quantiles = [float(np.quantile(run, share)) for run in runs]
    # Of few samples, the interpolated quantile lies below the value at which the distribution function reaches it.
    largest = max(*quantiles, *(float(np.quantile(run, share, method="inverted_cdf")) for run in runs))
    grid = np.unique([x for run in runs for x in (*run, *quantiles) if min(quantiles) <= x <= largest])
    grid = grid[:: len(grid) // 1000 + 1] if len(grid) > 1000 else grid
    below = np.array([np.searchsorted(np.sort(run), grid, side="right") / len(run) for run in runs])
    reached = resampled_counts(len(runs)) @ below >= len(runs) * share - ROUNDING
    reached[:, -1] = True  # thinning may have taken the last value
    return interval(grid[reached.argmax(axis=1)].astype(np.float64), len(runs))


def mean_interval(runs: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """Mean of all runs' samples, each run with the same weight, with its interval; in the samples' unit."""
    means = np.array([np.mean(run) for run in runs])
    low, high = interval(resampled_counts(len(runs)) @ means / len(runs), len(runs))
    return float(means.mean()), low, high


def interquartile_mean(samples: Sequence[int]) -> float:
    """Mean of the middle half: deaf to outliers as the median, but finer than the clock that gave whole numbers.

    Samples that lie half in the middle count half (the trimmed mean with fractional weights).
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    edge = len(ordered) / 4
    inside = np.minimum(np.arange(1, len(ordered) + 1), 3 * edge) - np.maximum(np.arange(len(ordered)), edge)
    return float(np.average(ordered, weights=np.clip(inside, 0, None)))


def far_out(samples: Floats) -> int:
    """How many samples lie beyond Tukey's outer fence; they are counted, never dropped."""
    lower, upper = np.quantile(samples, (0.25, 0.75))
    return int((samples > upper + FAR_OUT * (upper - lower)).sum())
