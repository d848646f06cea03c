import os

import pytest
import torch

from compress.data.machine import core_count, memory_gib
from compress.data.split import ResizedSplit, TensorSplit
from compress.data.storage import (
    MOST_WORKERS,
    held_gib,
    in_memory,
    memory_limit_gib,
    place,
    read,
    size_gib,
    worker_count,
)
from compress.errors import DataError


def split_of(n=10, size=4):
    images = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ResizedSplit(TensorSplit(images, torch.arange(n) % 2), size)


BATCHES = [torch.tensor(indices) for indices in ([3, 1], [0, 9, 3], [5], [2, 2], [7, 8], [4, 6], [1])]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's advice where there are fewer cores
@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_batches_come_in_order_whoever_reads_them(workers):
    split = split_of()
    before = torch.get_rng_state()
    found = list(read(split, BATCHES, workers=workers))
    assert [torch.equal(batch, split.images(i)) for batch, i in zip(found, BATCHES, strict=True)] == [True] * 7
    assert torch.equal(torch.get_rng_state(), before)
    assert list(read(split, [], workers=workers)) == []


class Broken(ResizedSplit):
    """Its seventh image cannot be read; asking for the ninth ends the process."""

    def images(self, indices):
        if 7 in indices:
            raise DataError("seven.png: cannot be read")
        if 9 in indices:
            os._exit(1)
        return super().images(indices)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_told_where_its_turn_is(workers):
    split = split_of()
    batches = read(Broken(split, 4), [torch.tensor([number]) for number in (1, 2, 7, 3)], workers=workers)
    assert torch.equal(next(batches), split.images(torch.tensor([1])))
    next(batches)
    with pytest.raises(DataError, match=r"^seven\.png: cannot be read$"):
        next(batches)


def test_a_process_that_ends_is_told():
    batches = read(Broken(split_of(), 4), [torch.tensor([9])], workers=1)
    with pytest.raises(DataError, match=r"a process that reads images has ended .*data\.workers=1"):
        next(batches)


def test_a_split_is_held_where_it_fits():
    split = split_of(n=10, size=16)
    exact = 10 * 3 * 16 * 16 / 2**30
    assert size_gib(split) == exact
    held = in_memory(split, exact)
    assert isinstance(held, TensorSplit)
    assert torch.equal(held.images(torch.arange(10)), split.images(torch.arange(10)))
    assert (held_gib(held), held_gib(split)) == (exact, 0.0)
    assert in_memory(split, exact * 0.99) is split


def test_by_default_a_quarter_of_the_memory_and_a_worker_for_each_core():
    assert memory_limit_gib(None) == memory_gib() / 4
    assert memory_limit_gib(3.0) == 3.0
    assert worker_count(None) == min(core_count(), MOST_WORKERS)
    assert worker_count(0) == 0


def test_says_where_images_are():
    split = split_of(n=1024, size=512)
    assert place("training", split, limit_gib=0.5, workers=2) == (
        "1,024 training images, 0.75 GiB: read anew in every epoch, by 2 worker processes (data.memory_gib allows 0.5)"
    )
    assert "by one worker process (" in place("training", split, limit_gib=0.5, workers=1)
    assert "without worker process (" in place("training", split, limit_gib=0.5, workers=0)
    held = in_memory(split_of(), 1.0)
    assert place("validation", held, limit_gib=1.0, workers=2).endswith(
        "GiB: held in memory (data.memory_gib allows 1)"
    )
