import torch

from compress.data.augment import random_flip
from compress.data.sampler import augment_generator


def test_flips_about_half_of_the_images(images):
    flipped = random_flip(images, True, augment_generator(0, 0, 0))
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 <= sum(mirrored) <= 48  # of 64; four standard deviations


def test_nothing_is_flipped_unless_asked(images):
    assert random_flip(images, False, augment_generator(0, 0, 0)) is images
