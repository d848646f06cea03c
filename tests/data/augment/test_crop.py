import torch

from compress.data.augment import random_crop
from compress.data.sampler import augment_generator


def places(image, original, pad):
    """Every offset at which `image` is a cut of the padded original."""
    padded = torch.nn.functional.pad(original, (pad, pad, pad, pad))
    height, width = original.shape[1:]
    offsets = [(y, x) for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return [(y, x) for y, x in offsets if torch.equal(padded[:, y : y + height, x : x + width], image)]


def test_each_crop_is_a_cut_of_its_padded_image(images):
    crops = random_crop(images, 2, augment_generator(0, 0, 0))
    found = [places(crop, image, 2) for crop, image in zip(crops, images, strict=True)]
    assert all(len(offsets) == 1 for offsets in found)
    rows, columns = zip(*(offsets[0] for offsets in found), strict=True)
    assert set(rows) == set(columns) == {0, 1, 2, 3, 4}
    assert crops.dtype == torch.uint8
    assert crops.is_contiguous()


def test_without_padding_nothing_is_cut(images):
    assert random_crop(images, 0, augment_generator(0, 0, 0)) is images
