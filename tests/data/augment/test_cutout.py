import pytest
import torch

from compress.data.augment import cutout
from compress.data.sampler import augment_generator


@pytest.mark.parametrize("side", [1, 3, 4])
def test_a_square_around_any_pixel_is_erased(images, side):
    images = images.float()
    erased = cutout(images, side, augment_generator(0, 0, 0))
    centres = set()
    for image, result in zip(images, erased, strict=True):
        expected = []
        for y in range(5):
            for x in range(7):
                trial = image.clone()
                top, left = y - side // 2, x - side // 2
                trial[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
                if torch.equal(trial, result):
                    expected.append((y, x))
        assert len(expected) == 1
        centres.add(expected[0])
    assert {y for y, _ in centres} == set(range(5))
    assert {x for _, x in centres} == set(range(7))


def test_no_side_erases_nothing(images):
    assert cutout(images, 0, augment_generator(0, 0, 0)) is images
