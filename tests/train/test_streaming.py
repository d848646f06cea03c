"""A run whose images do not fit in memory."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from rich.console import Console

from compress.train.config import Config
from compress.train.session import train

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's advice where cores are few

MIXED = ("data.image_size=12", "data.augment.mixup=0.3", "data.workers=2")


@pytest.fixture
def mixed(tiny: Callable[..., Config], tmp_path: Path) -> Callable[[str, float], Config]:
    return lambda name, memory_gib: tiny(*MIXED, f"data.memory_gib={memory_gib}", out=tmp_path / name)


def test_it_is_told_and_ends_with_the_same_bits(
    mixed: Callable[[str, float], Config], stopping: Callable[[int], AbstractContextManager[None]]
):
    in_memory = train(mixed("memory", 1.0))
    told = io.StringIO()
    with stopping(9):
        train(mixed("files", 0.0), console=Console(file=told, width=200))
    streamed = train(mixed("files", 0.0), resume=True)
    assert streamed["hash"] == in_memory["hash"]
    assert streamed["accuracy"] == in_memory["accuracy"]
    lines = told.getvalue().splitlines()
    assert lines[0].startswith("180 training images, ")
    assert lines[1].startswith("20 validation images, ")
    for line in lines[:2]:
        assert line.endswith("GiB: read anew in every epoch, by 2 worker processes (data.memory_gib allows 0)")
