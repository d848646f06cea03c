import numpy as np
import pytest

from bench.stats import (
    MIN_RUNS,
    Ratio,
    expanded_tail,
    far_out,
    interquartile_mean,
    mean_interval,
    median_interval,
    quantile_interval,
    ratio_of_medians,
    ratio_of_sessions,
)

RUNS, SAMPLES = 10, 20


def synthetic(rng: np.random.Generator, scale: float = 1.0) -> list[list[int]]:
    """Runs of about a millisecond: luck of 1 % that lasts a run, and autocorrelated noise of 3 % within it."""
    noise = rng.standard_normal((RUNS, SAMPLES))
    for sample in range(1, SAMPLES):
        noise[:, sample] = 0.7 * noise[:, sample - 1] + (1 - 0.7**2) ** 0.5 * noise[:, sample]
    luck = rng.normal(0, 0.01, (RUNS, 1))
    return [[int(value) for value in run] for run in 1e6 * scale * np.exp(0.03 * noise + luck)]


def test_the_interval_of_a_against_a_holds_1_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    intervals = [ratio_of_medians(synthetic(rng), synthetic(rng)) for _ in range(200)]
    holds = sum(ratio.low <= 1 <= ratio.high for ratio in intervals)
    # 190 expected; a binomial of 200 and 0.95 lies below 180 or above 198 once in about 300 cases.
    assert 180 <= holds <= 198


def test_a_clear_difference_is_told_with_its_size() -> None:
    rng = np.random.default_rng(8)
    ratio = ratio_of_medians(synthetic(rng, scale=0.8), synthetic(rng))
    assert ratio.low < 0.8 < ratio.high < 0.9
    assert ratio.verdict == "faster"


def test_what_changes_both_models_of_a_run_leaves_the_ratio_alone() -> None:
    baseline = [[1000 * (run + 1)] * 5 for run in range(RUNS)]
    model = [[500 * (run + 1)] * 5 for run in range(RUNS)]
    ratio = ratio_of_medians(model, baseline)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_runs_that_differ_widen_the_interval_however_many_samples_each_has() -> None:
    baseline = [[1000] * 1000] * RUNS
    model = [[900 if run % 2 else 1100] * 1000 for run in range(RUNS)]
    ratio = ratio_of_medians(model, baseline)
    assert ratio.low < 0.96
    assert ratio.high > 1.03
    assert ratio.verdict == "not distinguishable"


def test_the_same_samples_give_the_same_interval() -> None:
    runs = synthetic(np.random.default_rng(1)), synthetic(np.random.default_rng(2))
    assert ratio_of_medians(*runs) == ratio_of_medians(*runs)


def test_runs_of_two_models_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_of_medians([[1], [2]], [[1]])


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.8, 0.9, "faster"), (1.1, 1.2, "slower"), (0.9, 1.1, "not distinguishable")]
)
def test_the_verdict_follows_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Ratio(value=(low + high) / 2, low=low, high=high).verdict == verdict


def test_fewer_runs_take_percentiles_further_out() -> None:
    # Phi(-sqrt(10/9) * 2.2622), t quantile of 9 degrees of freedom from the tables.
    assert expanded_tail(10) == pytest.approx(0.00855, abs=5e-5)
    assert expanded_tail(MIN_RUNS) < expanded_tail(10) < expanded_tail(1000) < 0.025


def test_the_interval_of_a_median_holds_it_and_is_a_point_for_equal_samples() -> None:
    assert median_interval([[5, 5, 5]] * RUNS) == (5, 5)
    runs = synthetic(np.random.default_rng(3))
    low, high = median_interval(runs)
    assert low < np.median(np.concatenate(runs)) < high
    assert high / low < 1.05


def test_the_interval_of_a_median_is_the_same_for_many_distinct_values() -> None:
    fine = [[run * 7 + 1000 * sample for sample in range(2000)] for run in range(RUNS)]
    low, high = median_interval(fine)
    # The runs agree to within 63 of a spacing of 1000; the grid of candidates is thinned to about a thousand.
    assert 998_000 <= low <= high <= 1_001_063


def test_outliers_beyond_the_outer_fence_are_counted() -> None:
    samples = np.array([10.0, 11.0, 12.0, 13.0, 14.0, 100.0, 200.0])
    # Quartiles 11.5 and 57: the fence lies at 193.5.
    assert far_out(samples) == 1
    assert far_out(np.full(9, 3.0)) == 0


def test_the_interval_of_a_high_quantile_holds_it() -> None:
    rng = np.random.default_rng(11)
    holds = 0
    for _ in range(100):
        runs = rng.exponential(1e6, (RUNS, 300)).astype(int).tolist()
        low, high = quantile_interval(runs, 0.99)
        holds += low <= 1e6 * np.log(100) <= high  # the quantile of the exponential distribution
    assert holds >= 88  # 95 expected, a few less for the bias of a quantile of few samples


def test_the_interval_of_a_quantile_reaches_the_largest_sample_of_few() -> None:
    runs = [[1, 1, 1, 1, 1000 + run] for run in range(RUNS)]
    low, high = quantile_interval(runs, 0.99)
    assert 1000 < low <= high == 1000 + RUNS - 1
    assert quantile_interval([[5, 5, 5]] * RUNS, 0.99) == (5, 5)


def test_sessions_of_the_same_are_told_apart_as_seldom_as_the_interval_says() -> None:
    rng = np.random.default_rng(5)
    ratios = [ratio_of_sessions(*np.exp(rng.normal(0, 0.02, (2, RUNS)))) for _ in range(400)]
    holds = sum(ratio.low <= 1 <= ratio.high for ratio in ratios)
    assert 367 <= holds <= 392  # 380 expected; three standard deviations of a binomial
    twice = ratio_of_sessions(2 * np.exp(rng.normal(0, 0.02, RUNS)), np.exp(rng.normal(0, 0.05, 6)))
    assert 1.85 < twice.low < 2 < twice.high < 2.15
    exact = ratio_of_sessions([3.0] * 6, [2.0] * 6)
    assert (exact.value, exact.low, exact.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 1000]) == (3 + 4 + 5 + 6) / 4
    # Of five, the middle half is 2.5: the second and the fourth count three quarters.
    assert interquartile_mean([1, 2, 3, 4, 1000]) == pytest.approx((0.75 * 2 + 3 + 0.75 * 4) / 2.5)
    assert interquartile_mean([9]) == 9


def test_the_mean_has_an_interval_over_runs() -> None:
    assert mean_interval([[1, 3]] * RUNS) == (2, 2, 2)
    runs = synthetic(np.random.default_rng(4))
    mean, low, high = mean_interval(runs)
    assert low < mean < high
    assert mean == pytest.approx(np.mean(runs))
