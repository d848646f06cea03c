from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress.data import load
from compress.data.folder import FileSplit
from compress.data.sampler import batches
from compress.data.split import TensorSplit
from compress.train.config import AugmentSection
from compress.train.inputs import Inputs

Batches = list[tuple[Tensor, Tensor]]
EVERYTHING = AugmentSection(
    pad=2, flip=True, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, cutout=3, mixup=0.2
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(tmp_path / "train" / label / f"{number}.jpg")
    return tmp_path


def assert_same(some: Batches, others: Batches) -> None:
    for one, other in zip(some, others, strict=True):
        for tensor, expected in zip(one, other, strict=True):
            assert torch.equal(tensor, expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's advice where there are fewer cores
@pytest.mark.parametrize("augment", [AugmentSection(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_files_are_those_from_memory_bit_for_bit(folder: Path, augment: AugmentSection, workers: int):
    found = []
    for memory_gib, kind in ((1.0, TensorSplit), (0.0, FileSplit)):
        data = load(str(folder), memory_gib=memory_gib)
        assert isinstance(data.train, kind)
        inputs = Inputs(data, augment, seed=3, device=torch.device("cpu"), workers=workers)
        order = list(batches(len(data.train), 8, seed=3, epoch=1))
        epoch = list(inputs.augmented(data.train, order, epoch=1))
        rest = list(inputs.augmented(data.train, order[2:], epoch=1, start=2))
        assert_same(epoch[2:], rest)
        plain = list(inputs.plain_batches(data.validation, [torch.arange(2), torch.arange(4)]))
        assert_same([plain[1]], [inputs.plain(data.validation, torch.arange(4))])
        found.append(epoch + plain)
    memory, files = found
    assert len(memory) == 7
    assert_same(memory, files)
