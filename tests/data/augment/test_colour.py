import colorsys
import importlib

import pytest
import torch

from compress.data.augment import colour
from compress.data.sampler import augment_generator
from compress.torchvision_compat import torchvision

KINDS = ["brightness", "contrast", "saturation", "hue"]
REFERENCE = importlib.import_module(f"{torchvision.__name__}.transforms.v2.functional")
TOLERANCE = {"hue": 1e-3}  # torchvision turns hues in float32
AMOUNTS = {"brightness": [0.0, 0.3, 1.0, 1.7], "hue": [-0.5, -0.21, 0.0, 0.13, 0.5]}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_adjusted_as_torchvision_does(images, kind, channels):
    if kind == "hue" and channels == 1:
        pytest.skip("grey images have no hue; a recipe that turns it is refused")
    amounts = AMOUNTS.get(kind, AMOUNTS["brightness"])
    images = images[: len(amounts), :channels].double()
    images[0, :, 0, :3] = torch.tensor([0.0, 128.0, 255.0])  # black, grey and white have no hue
    adjust = getattr(REFERENCE, f"adjust_{kind}")
    expected = torch.stack([255 * adjust(image / 255, a) for image, a in zip(images, amounts, strict=True)])
    adjusted = getattr(colour, f"adjust_{kind}")(images, torch.tensor(amounts, dtype=torch.float64))
    assert (adjusted - expected).abs().max() < TOLERANCE.get(kind, 1e-10)
    if channels == 3 or kind != "saturation":
        assert (adjusted[1:] - images[1:]).abs().max() > 1


@pytest.mark.parametrize("turn", [-0.5, -0.21, 0.0, 0.13, 0.5])
def test_hues_turn_in_the_hsv_model(images, turn):
    def turned(red, green, blue):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    images = images[:8].double()
    images[0, :, 0, :3] = torch.tensor([0.0, 128.0, 255.0])  # black, grey and white have no hue
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    adjusted = colour.adjust_hue(images, torch.full((8,), turn, dtype=torch.float64)).permute(0, 2, 3, 1).reshape(-1, 3)
    expected = torch.tensor([turned(*pixel) for pixel in pixels], dtype=torch.float64)
    assert (adjusted - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_gets_an_amount_of_its_own(kind):
    """A single pixel's colour tells the factor."""
    pixel = torch.tensor([90, 50, 10], dtype=torch.uint8)
    images = pixel[None, :, None, None].expand(200, 3, 1, 2).clone()
    images[..., 1] = 0
    changed = getattr(colour, f"random_{kind}")(images, 0.25, augment_generator(0, 0, 0))
    adjust = getattr(colour, f"adjust_{kind}")
    low, high = (-0.25, 0.25) if kind == "hue" else (0.75, 1.25)
    tried = torch.linspace(low, high, 401)
    table = adjust(images[:1].expand(401, -1, -1, -1), tried)[:, :, 0, 0]
    found = tried[(changed[:, None, :, 0, 0] - table).abs().sum(2).argmin(1)]
    assert found.min() < low + 0.1 * (high - low)
    assert found.max() > high - 0.1 * (high - low)
    assert abs(float(found.mean()) - (low + high) / 2) < 0.1 * (high - low)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_unless_asked(images, kind):
    generator = augment_generator(0, 0, 0)
    before = generator.get_state()
    assert getattr(colour, f"random_{kind}")(images, 0.0, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_factors_are_never_negative():
    """From 0 to 4, not from -2, where a third of the images would be black."""
    images = torch.full((1000, 1, 1, 1), 50, dtype=torch.uint8)
    changed = colour.random_brightness(images, 3.0, augment_generator(0, 0, 0)).flatten()
    assert changed.max() <= 200
    assert changed.mean() == pytest.approx(100, abs=8)  # four standard deviations
    assert (changed == 0).sum() <= 1
