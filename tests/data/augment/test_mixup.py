import itertools

import torch
from torch.nn import functional as F

from compress.data.augment import mixup
from compress.data.sampler import augment_generator


def share_and_partners(mixed, images):
    """By brute force, from the definition: the share that explains every image, with one partner each."""
    for image, partner in itertools.permutations(range(len(images)), 2):
        difference = (images[image] - images[partner]).flatten()
        share = float((mixed[image] - images[partner]).flatten() @ difference / (difference @ difference))
        trial = share * images[:, None] + (1 - share) * images[None]
        errors = (trial - mixed[:, None]).abs().flatten(2).amax(2)
        if errors.amin(1).max() < 1e-9:
            return share, errors.argmin(1)
    raise AssertionError("no share explains all images")


def test_images_and_targets_are_mixed_alike():
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 4, 4, dtype=torch.float64, generator=draw)
    targets = F.one_hot(torch.arange(8), 8).double()
    shares = []
    for step in range(20):
        mixed, mixed_targets = mixup(images, targets, 1.0, augment_generator(0, 0, step))
        share, partners = share_and_partners(mixed, images)
        assert sorted(partners.tolist()) == list(range(8))
        expected = share * targets + (1 - share) * targets[partners]
        assert (mixed_targets - expected).abs().max() < 1e-9
        assert (mixed_targets.sum(1) - 1).abs().max() < 1e-12
        shares.append(share)
    assert all(0 <= share <= 1 for share in shares)
    assert max(shares) - min(shares) > 0.5  # Beta(1, 1) is uniform


def test_alpha_zero_mixes_nothing():
    images, targets = torch.rand(4, 1, 2, 2), torch.eye(4)
    assert mixup(images, targets, 0.0, augment_generator(0, 0, 0)) == (images, targets)
