"""Throughput: inferences of several batch sizes, one after the other, from the same processes as the latency."""

from collections.abc import Sequence

import numpy as np

from bench.protocol import LatencySamples
from bench.report import BatchTimes, Throughput
from bench.stats import mean_interval, ratio_of_medians
from bench.units import NS_PER_MS, NS_PER_S


def throughput(
    batch: int, model: Sequence[LatencySamples], baseline: Sequence[LatencySamples] | None = None
) -> Throughput:
    """One batch size's figures.

    Args:
        batch: Images in an inference.
        model: Samples of each process.
        baseline: The baseline's in the same processes.
    """
    ratio = None
    if baseline is not None:
        ratio = ratio_of_medians([run.samples_ns for run in model], [run.samples_ns for run in baseline])
    return Throughput(
        batch=batch,
        model=batch_times(batch, model),
        baseline=None if baseline is None else batch_times(batch, baseline),
        ratio=ratio,
    )


def batch_times(batch: int, runs: Sequence[LatencySamples]) -> BatchTimes:
    """One model's: the rate is that of the mean time, since slow inferences cost throughput as well."""
    mean, low, high = mean_interval([run.samples_ns for run in runs])
    p50, p99 = np.quantile(np.concatenate([run.samples_ns for run in runs]), (0.5, 0.99)) / NS_PER_MS
    return BatchTimes(
        images_per_second=batch * NS_PER_S / mean,
        images_per_second_low=batch * NS_PER_S / high,
        images_per_second_high=batch * NS_PER_S / low,
        p50_ms=float(p50),
        p99_ms=float(p99),
        runs=tuple(runs),
    )
