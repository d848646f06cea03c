import math

import pytest
import torch

from compress.pruning.units import Units, find_units, in_blocks, layers_of

NAN = torch.nan


def units_of(scores, *partitions):
    scores = torch.tensor(scores, dtype=torch.float64)
    return find_units(scores, torch.zeros(len(scores), dtype=torch.int64), [torch.tensor(p) for p in partitions])


def members(units):
    return sorted(sorted((units.of_class == unit).nonzero().flatten().tolist()) for unit in range(len(units)))


def test_without_groups_every_class_with_a_score_is_a_unit():
    units = units_of([3.0, NAN, 1.0])
    assert members(units) == [[0], [2]]
    assert units.score.tolist() == units.highest.tolist() == [3.0, 1.0]
    assert units.of_class.tolist() == [0, -1, 1]
    assert units.members([1]).tolist() == [False, False, True]
    assert units.members([]).tolist() == [False, False, False]


def test_a_unit_takes_the_least_important_of_every_group():
    units = units_of([5.0, 1.0, 2.0, 9.0, 4.0, 7.0, 0.5], [[0, 1, 2], [3, 4, 5]])
    assert members(units) == [[0, 3], [1, 4], [2, 5], [6]]
    found = {tuple(m): i for i in range(len(units)) for m in [(units.of_class == i).nonzero().flatten().tolist()]}
    assert units.score[found[1, 4]] == 2.5
    assert units.highest[found[1, 4]] == 4


def test_groups_that_must_keep_a_channel_keep_as_many_in_every_group():
    assert members(units_of([5.0, NAN, 2.0, 9.0, 4.0, 7.0], [[0, 1, 2], [3, 4, 5]])) == [[0, 5], [2, 4]]


def test_finer_groups_of_a_second_convolution_are_respected():
    coarse, fine = [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]
    units = units_of([float(i) for i in range(8)], coarse, fine, coarse)
    assert members(units) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_groups_that_cut_across_each_other_lose_one_of_every_cell():
    rows, columns = [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1, 4, 5], [2, 3, 6, 7]]
    units = units_of([float(i) for i in range(8)], rows, columns)
    assert members(units) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_groups_that_cannot_lose_evenly_lose_nothing():
    rows, lopsided = [[0, 1], [2, 3]], [[0, 1, 2], [3, 4, 5]]
    units = units_of([1.0] * 7, rows, lopsided)
    assert members(units) == [[6]]
    assert units.of_class[:6].tolist() == [-1] * 6


def test_a_class_in_two_groups_counts_in_both():
    assert members(units_of([1.0, 2.0, 3.0], [[0, 1], [1, 0]])) == [[0], [1], [2]]  # each takes one of either group
    assert members(units_of([1.0, 2.0, 3.0], [[0, 0], [1, 2]])) == []


@pytest.mark.parametrize("seed", range(20))
def test_random_groups_lose_equally_many_whatever_is_taken(seed):
    generator = torch.Generator().manual_seed(seed)
    partitions = [torch.randperm(24, generator=generator).reshape(4, 6), torch.arange(24, 48).reshape(3, 8)]
    scores = torch.rand(50, generator=generator, dtype=torch.float64)
    scores[torch.rand(50, generator=generator) < 0.2] = NAN
    units = find_units(scores, torch.zeros(50, dtype=torch.int64), partitions)
    chosen = units.members([u for u in range(len(units)) if units.score[u] < 0.5])
    assert chosen.any()
    assert not (chosen & scores.isnan()).any()
    for partition in partitions:
        assert len(set(chosen[partition].sum(1).tolist())) == 1


def test_layers_are_joined_by_what_they_share():
    layers = layers_of([torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([1, 4])], 6)
    assert layers[0] == layers[1] == layers[4]
    assert layers[2] == layers[3]
    assert len({int(layers[0]), int(layers[2]), int(layers[5])}) == 3
    assert layers_of([], 3).unique().numel() == 3


def widths_when(blocks: Units, rows: list[torch.Tensor], leaving: list[int]) -> list[int]:
    gone = blocks.members(leaving)
    return [int((~gone[row]).sum()) for row in rows]


def test_blocks_take_the_least_important_of_a_layer_first():
    scores = torch.tensor([5.0, 1, 4, 2, 3, 6, 0], dtype=torch.float64)
    units = find_units(scores, torch.zeros(7, dtype=torch.int64), [])
    blocks = in_blocks(units, [torch.arange(7)], 4)
    assert members(blocks) == [[0, 2, 4, 5], [1, 3, 6]]  # three first: 7 is no multiple of 4
    assert blocks.score.tolist() == [1.0, 4.5]
    assert blocks.highest.tolist() == [2.0, 6.0]


def test_what_fills_no_block_stays():
    """Six of nine channels may leave: one, to come to 8, and four more."""
    scores = torch.tensor([0.0, 1, 2, 3, 4, 5, torch.nan, torch.nan, torch.nan], dtype=torch.float64)
    rows = [torch.arange(9)]
    blocks = in_blocks(find_units(scores, torch.zeros(9, dtype=torch.int64), []), rows, 4)
    assert members(blocks) == [[0], [1, 2, 3, 4]]
    assert blocks.of_class[5:].tolist() == [-1] * 4
    assert widths_when(blocks, rows, [0, 1]) == [4]


def test_channels_of_several_layers_leave_each_of_them_in_blocks():
    """Layer A has channels 0 to 7, B 4 to 15: each part leaves on its own."""
    rows = [torch.arange(8), torch.arange(4, 16)]
    scores = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = in_blocks(find_units(scores, torch.zeros(16, dtype=torch.int64), []), rows, 2)
    for count in range(len(blocks) + 1):
        assert all(width % 2 == 0 for width in widths_when(blocks, rows, list(range(count))))
    assert sum(len(unit) for unit in members(blocks)) == 16


@pytest.mark.parametrize(("one", "other"), [(20, 12), (29, 3), (58, 58), (12, 4)])
def test_layers_of_which_none_is_a_multiple_come_to_one_together(one, other):
    """Two layers that are concatenated, and a depthwise one of all their channels."""
    count = one + other
    rows = [torch.arange(one), torch.arange(one, count), torch.arange(count)]
    scores = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = in_blocks(find_units(scores, torch.zeros(count, dtype=torch.int64), []), rows, 4)
    order = blocks.score.argsort().tolist()
    for taken in range(1, len(order) + 1):
        assert all(width % 4 == 0 for width in widths_when(blocks, rows, order[:taken]))
    assert sum(len(unit) for unit in members(blocks)) == count


@pytest.mark.parametrize("round_to", [1, 3, 4, 8])
def test_blocks_of_grouped_convolutions_are_whole_units(round_to):
    """Four groups of six: a unit takes one channel of each."""
    partition = torch.arange(24).reshape(4, 6)
    scores = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = in_blocks(
        find_units(scores, torch.zeros(24, dtype=torch.int64), [partition]), [torch.arange(24)], round_to
    )
    for unit in members(blocks):
        assert len(unit) % math.lcm(round_to, 4) == 0
        assert len({sum(cls // 6 == group for cls in unit) for group in range(4)}) == 1
    assert all(width % round_to == 0 for width in widths_when(blocks, [torch.arange(24)], [0]))
