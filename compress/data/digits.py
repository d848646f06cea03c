"""``digits``: 1,797 handwritten digits, 8x8 grey, embedded in scikit-learn (UCI's optical recognition test set)."""

from pathlib import Path

import torch

from compress.data.source import Source
from compress.data.split import TensorSplit
from compress.data.stratified import complement, stratified_choice

TEST_SHARE = 0.2  # scikit-learn gives one set; a fifth of it, always the same, is set aside
TEST_SEED = 0
WHITE = 16  # the brightest value of the original scale


def load_digits(data_dir: Path | None, *, download: bool) -> Source:  # noqa: ARG001 - embedded: needs neither
    """Read the set from scikit-learn's files; grey levels 0 to 16 become 0 to 255."""
    from sklearn.datasets import load_digits as read

    bunch = read()
    images = torch.from_numpy(bunch.images).mul(255 / WHITE).round().to(torch.uint8).unsqueeze(1)
    everything = TensorSplit(images, torch.from_numpy(bunch.target))
    test = stratified_choice(everything.labels, round(TEST_SHARE * len(everything)), seed=TEST_SEED)
    return Source(
        classes=tuple(str(digit) for digit in range(10)),
        train=everything.subset(complement(test, len(everything))),
        validation=None,
        load_test=lambda: everything.subset(test),
    )
