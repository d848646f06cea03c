import pytest
import torch
from torch.nn import functional as F

from compress.data.augment import CHANGES, MIXTURES, PIXEL_CHANGES, Augmentation, random_crop, random_flip
from compress.data.normalise import normalise
from compress.data.sampler import augment_generator
from compress.errors import ConfigError
from compress.train.config import AugmentSection

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
LABELS = torch.arange(64) % 10
EVERYTHING = {
    "pad": 1,
    "flip": True,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "cutout": 2,
    "mixup": 0.2,
}


def make(amounts, channels=3):
    shape = (channels, 5, 7)
    return Augmentation(amounts, mean=MEAN[:channels], std=STD[:channels], image_shape=shape, classes=10)


def test_a_recipe_has_a_key_for_each_change_and_no_other():
    assert [*PIXEL_CHANGES, *CHANGES, *MIXTURES] == list(AugmentSection.model_fields) == list(EVERYTHING)
    assert not any(AugmentSection().model_dump().values())


@pytest.mark.parametrize("amounts", [{key: amount} for key, amount in EVERYTHING.items()] + [EVERYTHING])
def test_is_a_function_of_the_generator(images, amounts):
    augmentation = make(amounts)
    first, again, other = (augmentation(images, LABELS, augment_generator(5, 1, step)) for step in (2, 2, 3))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], normalise(images, MEAN, STD))
    assert first[0].dtype == torch.float32


def test_draws_crops_before_flips(images):
    """Runs of earlier versions are repeated only so."""
    generator = augment_generator(0, 0, 0)
    expected = random_flip(random_crop(images, 2, generator), True, generator)
    changed, labels = make({"pad": 2, "flip": True})(images, LABELS, augment_generator(0, 0, 0))
    assert torch.equal(changed, normalise(expected, MEAN, STD))
    assert labels is LABELS


def test_labels_become_shares_where_images_are_mixed(images):
    changed, targets = make({"mixup": 0.5})(images, LABELS, augment_generator(0, 0, 0))
    assert targets.shape == (64, 10)
    assert targets.sum(1) == pytest.approx(1.0, abs=1e-6)
    own = targets[torch.arange(64), LABELS]
    share = float(own.min())
    assert torch.isclose(own, torch.tensor(share)).logical_or(own > 0.999).all()
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert F.cross_entropy(logits, targets) == pytest.approx(float(by_hand), rel=1e-6)
    assert changed.shape == images.shape


@pytest.mark.parametrize("key", ["saturation", "hue"])
def test_grey_images_have_no_colour(key):
    with pytest.raises(ConfigError, match=rf"data\.augment\.{key}: images of 1 channels have no colour"):
        make({key: 0.1}, channels=1)


def test_a_square_must_leave_something():
    with pytest.raises(ConfigError, match=r"data\.augment\.cutout: a square of 5 pixels .* 5x7 .*expected less than 5"):
        make({"cutout": 5})
