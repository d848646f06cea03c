import pytest
import torch

from compress.data.augment import normalise, random_crop, random_flip
from compress.data.sampler import augment_generator


@pytest.fixture
def images():
    return torch.randint(1, 256, (64, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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


def test_flips_about_half_of_the_images(images):
    flipped = random_flip(images, augment_generator(0, 0, 0))
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 <= sum(mirrored) <= 48  # of 64; four standard deviations


def test_is_a_function_of_the_generator(images):
    def augmented(step):
        draw = augment_generator(5, 1, step)
        return random_flip(random_crop(images, 4, draw), draw)

    assert torch.equal(augmented(2), augmented(2))
    assert not torch.equal(augmented(2), augmented(3))


def test_normalised_images_have_mean_zero_and_deviation_one(images):
    pixels = images.double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    normalised = normalise(images, mean.tolist(), std.tolist())
    assert normalised.dtype == torch.float32
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    assert normalised == pytest.approx(expected.float(), abs=1e-5)  # a few float32 roundings of values up to 2


def test_a_constant_channel_stays_finite():
    black = normalise(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), [0.0], [0.0])
    assert torch.equal(black, torch.zeros(1, 1, 2, 2))
