import pytest
import torch

from compress.data.sampler import augment_generator, batch_count, batches


@pytest.mark.parametrize(
    "n, batch_size, sizes",
    [
        (12, 4, [4, 4, 4]),
        (14, 4, [4, 4, 4, 2]),
        (13, 4, [4, 4, 5]),  # not a batch of one image
        (5, 4, [5]),
        (3, 4, [3]),
        (1, 4, [1]),  # there is no other
        (3, 1, [1, 1, 1]),
    ],
)
def test_cuts_a_permutation(n, batch_size, sizes):
    cut = list(batches(n, batch_size, seed=0, epoch=0))
    assert [len(batch) for batch in cut] == sizes
    assert batch_count(n, batch_size) == len(sizes)
    assert torch.cat(cut).sort().values.tolist() == list(range(n))


def test_continues_in_the_middle_of_an_epoch():
    whole = list(batches(101, 10, seed=3, epoch=7))
    rest = list(batches(101, 10, seed=3, epoch=7, start=4))
    assert len(rest) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return torch.cat(list(batches(50, 8, seed=seed, epoch=epoch))).tolist()

    assert order(1, 2) == order(1, 2)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 9


def test_does_not_touch_torchs_global_generator():
    before = torch.get_rng_state()
    list(batches(50, 8, seed=1, epoch=0))
    torch.rand(3, generator=augment_generator(1, 0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_differs_by_seed_epoch_and_step():
    keys = [(seed, epoch, step) for seed in range(3) for epoch in range(3) for step in range(3)]
    draws = {torch.randint(2**62, (1,), generator=augment_generator(*key)).item() for key in keys}
    assert len(draws) == len(keys)


def test_refuses_empty_epochs():
    with pytest.raises(ValueError, match="cannot cut 0 images into batches of 4"):
        list(batches(0, 4, seed=0, epoch=0))
    with pytest.raises(ValueError, match="cannot cut 4 images into batches of 0"):
        list(batches(4, 0, seed=0, epoch=0))
