"""Which units leave: on ledgers whose costs are plain sums, so that the right answer can be seen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.pruning.allocation import UnreachableError, below, down_to, ranks
from compress.pruning.cost import Ledger, Term
from compress.pruning.units import Units


def ledger_of(costs, rows=(), floor=0):
    """One unit a cost; the total is their sum."""
    units = torch.arange(len(costs))
    terms = [Term(float(cost), (torch.tensor([unit]),)) for unit, cost in enumerate(costs)]
    return Ledger(terms, units, torch.zeros(len(costs), dtype=torch.bool), [torch.tensor(row) for row in rows], floor)


def rising(count):
    return torch.arange(count, dtype=torch.float64)


def test_everything_below_the_limit_leaves_and_nothing_else():
    values = torch.tensor([0.5, 0.1, 0.3, 0.3, 0.2], dtype=torch.float64)
    assert below(0.3, values, ledger_of([1] * 5)) == [1, 4]
    assert below(0.05, values, ledger_of([1] * 5)) == []
    assert below(9.0, values, ledger_of([1] * 5, rows=[[0, 1], [2, 3, 4]], floor=1)) == [1, 4, 2]


def search(goal, tolerance, values, ledger, layers=None):
    return sorted(down_to(goal, tolerance, values, torch.arange(len(values)) if layers is None else layers, ledger))


def test_the_least_important_leave_until_the_goal():
    values = torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    assert search(20, 1, values, ledger_of([10] * 4)) == [1, 3]


@pytest.mark.parametrize(("goal", "removed"), [(26, [0]), (24, [0, 1]), (25, [0, 1])])
def test_the_nearer_side_of_the_goal_is_taken(goal, removed):
    assert search(goal, 6, rising(4), ledger_of([10] * 4)) == removed


def test_where_a_unit_is_too_large_others_fill_in():
    ledger = ledger_of([5, 50, 3, 4, 38])
    assert search(88, 0, rising(5), ledger) == [0, 2, 3]
    assert ledger.total == 88


def test_layers_give_and_take_but_lose_their_least_important_first():
    ledger = ledger_of([30, 40, 30, 30])  # 130 -> 30 + 30: without the second unit, which no longer fits
    assert search(60, 1, rising(4), ledger) == [0, 1]
    layers = torch.tensor([0, 1, 0, 0])
    assert search(40, 1, rising(4), ledger_of([30, 40, 30, 30]), layers) == [0, 2, 3]
    layers = torch.tensor([0, 0, 1, 1])
    assert search(70, 1, rising(4), ledger_of([20, 50, 30, 30]), layers) == [2, 3]
    with pytest.raises(UnreachableError):  # 1 may not leave before 0
        search(51, 0.5, rising(4), ledger_of([21, 50, 30, 30]), layers)


def test_what_cannot_be_reached_names_the_nearest_and_the_least():
    with pytest.raises(UnreachableError) as error:
        search(50, 1, rising(3), ledger_of([40, 40, 40]))
    assert (error.value.nearest, error.value.least) == (40, 0)
    with pytest.raises(UnreachableError) as error:
        search(10, 1, rising(4), ledger_of([10] * 4, rows=[[0, 1], [2, 3]], floor=1))
    assert (error.value.nearest, error.value.least) == (20, 20)


@given(
    st.lists(st.integers(1, 9), min_size=60, max_size=90),
    st.floats(0.05, 0.95),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_fine_units_reach_their_goal_strictly_by_importance(costs, share, layers, random):
    values = torch.tensor([random.random() for _ in costs], dtype=torch.float64)
    ledger = ledger_of(costs)
    goal = share * sum(costs)
    removed = search(goal, 5.0, values, ledger, torch.tensor([random.randrange(layers) for _ in costs]))
    assert abs(ledger.total - goal) <= 5
    assert ledger.total == pytest.approx(sum(costs) - sum(costs[unit] for unit in removed))
    stay = set(range(len(costs))) - set(removed)
    assert max(values[removed], default=0) <= min((values[unit] for unit in stay), default=1)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_a_few_small_layers_can_reach_is_found(seed):
    """Costs as of networks: products of what is left of neighbouring layers."""
    generator = torch.Generator().manual_seed(seed)
    widths = [4, 7, 5]
    ends = torch.tensor(widths).cumsum(0).tolist()
    layer = torch.repeat_interleave(torch.arange(3), torch.tensor(widths))
    units = torch.arange(sum(widths))
    rows = list(units.split(widths))
    terms = [Term(216.0, (rows[0],)), Term(280.0, tuple(rows[:2])), Term(700.0, tuple(rows[1:]))]
    left = [(a, b, c) for a in range(1, 5) for b in range(1, 8) for c in range(1, 6)]
    costs = [216 * a / 4 + 280 * a * b / 28 + 700 * b * c / 35 for a, b, c in left]
    values = torch.rand(ends[-1], generator=generator, dtype=torch.float64)
    for goal in costs[seed::11]:
        ledger = Ledger(terms, units, torch.zeros(ends[-1], dtype=torch.bool), rows, 1)
        removed = search(goal, 1e-6, values, ledger, layer)
        assert ledger.total == pytest.approx(goal)
        for row in rows:
            gone = [unit for unit in row.tolist() if unit in removed]
            assert sorted(row.tolist(), key=values.__getitem__)[: len(gone)] == sorted(gone, key=values.__getitem__)


def test_ranks_divide_every_layer_alike():
    score = torch.tensor([9.0, 7.0, 8.0, 0.1, 0.3, 0.2, 0.4], dtype=torch.float64)
    layer = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    units = Units(torch.arange(7), score, score, layer)
    assert ranks(units).tolist() == pytest.approx([5 / 6, 1 / 6, 3 / 6, 1 / 8, 5 / 8, 3 / 8, 7 / 8])
