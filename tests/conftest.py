"""Real data sets, where there are any: the folder that ``COMPRESS_TEST_DATA`` names, ``../shared/data`` by default.

And the order of the files: those that take longest come first.
"""

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

LONGEST = (
    "tests/test_whole_way.py",
    "tests/surgery/test_random_networks.py",
    "tests/surgery/test_pitfalls_ops.py",
    "tests/surgery/test_exam.py",
    "tests/train/test_world.py",
    "tests/train/test_compaction.py",
    "tests/train/test_killed.py",
    "tests/cli/test_train.py",
    "tests/cli/test_finetune.py",
)
"""Those that take half a minute or more, as ``pytest --durations=0`` tells; one that is missing only costs time."""

IMAGES_PER_CLASS = {"train": 200, "test": 20}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that workers which take file after file end at about the same time."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(scope="session")
def data_root() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("COMPRESS_TEST_DATA", default))


@pytest.fixture(scope="session")
def mnist_root(data_root: Path) -> Path:
    """A folder with ``MNIST/raw/``, to be given as ``data_dir``; read only."""
    if not (data_root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST under {data_root}: set COMPRESS_TEST_DATA to a folder that holds MNIST/raw/")
    return data_root


@pytest.fixture(scope="session")
def cifar10_jpeg(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of the first 200 training and 20 test images of each class of CIFAR-10 (JPEG)."""
    archive = data_root / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}: set COMPRESS_TEST_DATA to a folder that holds it")
    root = tmp_path_factory.mktemp("cifar10-jpeg")
    taken: Counter[tuple[str, str]] = Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() or not member.name.endswith(".jpg"):
                continue
            split, class_name, file_name = Path(member.name).parts[-3:]
            if taken[split, class_name] == IMAGES_PER_CLASS[split]:
                continue
            taken[split, class_name] += 1
            target = root / split / class_name / file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            target.write_bytes(source.read())
    return root
