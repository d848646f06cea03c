import pytest
import torch

from compress.data.normalise import normalise


def test_normalised_images_have_mean_zero_and_deviation_one():
    images = torch.randint(1, 256, (64, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = images.double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    normalised = normalise(images, mean.tolist(), std.tolist())
    assert normalised.dtype == torch.float32
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    assert normalised == pytest.approx(expected.float(), abs=1e-5)  # a few float32 roundings of values up to 2


def test_a_constant_channel_stays_finite():
    black = normalise(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), [0.0], [0.0])
    assert torch.equal(black, torch.zeros(1, 1, 2, 2))
