import numpy as np
import pytest
from scipy import stats

from bench.shares import clopper_pearson, count_to_tell, effective_count, share_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 100), (1, 100), (7, 300), (300, 300), (2, 3)])
def test_of_whole_numbers_it_is_the_exact_interval_of_a_binomial(hits: int, count: int) -> None:
    exact = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits / count, count) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_nothing_in_n_leaves_3_point_7_over_n_open() -> None:
    low, high = share_interval([[False] * 34, [False] * 33, [False] * 33])
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert high == pytest.approx(3.7 / 100, rel=0.03)


def test_what_comes_in_bursts_counts_as_fewer() -> None:
    alone = [([False] * 9 + [True]) * 10] * 3
    burst = [[True] * 30 + [False] * 70, [False] * 100, [False] * 100]
    assert effective_count(alone) == 300  # evenly spread is not taken for better than chance
    assert 3 <= effective_count(burst) < 15
    (low, high), (far_low, far_high) = share_interval(alone), share_interval(burst)
    assert far_low < low < 0.1 < high < far_high
    # A process that misses all beside two that miss nothing tells as much as three frames.
    assert effective_count([[True] * 100, [False] * 100, [False] * 100]) == 3


@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_the_interval_holds_the_share_as_often_as_it_says(persistence: float) -> None:
    """Chains that keep their state with the probability `persistence`, and draw it anew otherwise."""
    rng, share, held = np.random.default_rng(3), 0.1, 0
    for _ in range(200):
        runs = rng.random((3, 200)) < share
        keeps = rng.random(runs.shape) < persistence
        for frame in range(1, 200):
            runs[:, frame] = np.where(keeps[:, frame], runs[:, frame - 1], runs[:, frame])
        low, high = share_interval(runs.tolist())
        held += low <= share <= high
    assert held >= 180  # 190 or more expected


def test_the_count_that_tells_is_the_smallest_that_does() -> None:
    for missed, limit in ((0, 0.01), (1, 0.05), (30, 0.05)):
        runs = [[True, False] * missed + [False] * (100 - 2 * missed)] * 3
        share = missed / 100
        count = count_to_tell(runs, limit)
        assert count is not None
        scale = effective_count(runs) / 300

        def told(number: int, share: float = share, limit: float = limit, scale: float = scale) -> bool:
            low, high = clopper_pearson(share, number * scale)
            return high <= limit if share < limit else low > limit

        assert told(count)
        assert not told(count - 1)
    assert count_to_tell([[False] * 100], 0.01) == 368  # ln 0.025 / ln 0.99
    assert count_to_tell([[False] * 100], 0.0) is None
    assert count_to_tell([[True, False] * 50], 0.5) is None
