import pytest
import torch

from compress.pruning.units import find_units, layers_of

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
