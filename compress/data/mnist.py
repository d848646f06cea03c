"""``mnist`` and ``fashion-mnist``: 60,000 training and 10,000 test images, 28x28 grey, in idx files.

Files lie where torchvision puts them, ``DATA_DIR/MNIST/raw/`` or ``DATA_DIR/FashionMNIST/raw/``, plain or still
compressed (``.gz``), and are read without writing anything, so a read-only folder will do.
Format: http://yann.lecun.com/exdb/mnist/, "the idx file format".
"""

import gzip
import zlib
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.data.source import Loader, Source, required_folder
from compress.data.split import TensorSplit
from compress.errors import DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE = 0x08  # idx's code of the element type
DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _load(name: str, folder: str, classes: tuple[str, ...], data_dir: Path | None, *, download: bool) -> Source:
    root = required_folder(
        name, data_dir, holds=f"{folder}/raw/ with {FILES['train'][0]}[.gz] ...", may_be_new=download
    )
    raw = root / folder / "raw"
    missing = [file for files in FILES.values() for file in files if _find(raw, file) is None]
    if missing and download:
        _download(name, folder, root)
        missing = [file for file in missing if _find(raw, file) is None]
    if missing:
        raise DataError(f"{name}: {raw} lacks {', '.join(missing)} (plain or .gz); pass --download to fetch them")
    return Source(
        classes=classes,
        train=_read_split(raw, "train", classes),
        validation=None,
        load_test=lambda: _read_split(raw, "test", classes),
    )


load_mnist: Loader = partial(_load, "mnist", "MNIST", DIGITS)
load_fashion_mnist: Loader = partial(_load, "fashion-mnist", "FashionMNIST", CLOTHES)


def _find(raw: Path, file: str) -> Path | None:
    return next((path for path in (raw / file, raw / f"{file}.gz") if path.is_file()), None)


def _download(name: str, dataset: str, root: Path) -> None:
    from compress.torchvision_compat import torchvision

    try:
        getattr(torchvision.datasets, dataset)(root, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        raise DataError(f"{name}: the download into {root} failed: {error}") from error


def _read_split(raw: Path, split: str, classes: tuple[str, ...]) -> TensorSplit:
    image_path, label_path = (raw / file if (raw / file).is_file() else raw / f"{file}.gz" for file in FILES[split])
    images, labels = _read_idx(image_path, dimensions=3), _read_idx(label_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{label_path}: {len(labels)} labels for {len(images)} images; replace both files")
    if len(labels) == 0 or int(labels.max()) >= len(classes):
        raise DataError(f"{label_path}: expected labels 0 to {len(classes) - 1}, and at least one; replace the file")
    return TensorSplit(images.unsqueeze(1), labels)


def _read_idx(path: Path, *, dimensions: int) -> Tensor:
    """The array of an idx file of unsigned bytes, uint8 with so many dimensions."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and pass --download to fetch it again") from error
    header_bytes = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]) or len(content) < header_bytes:
        raise DataError(
            f"{path}: is no idx file of {dimensions} dimensions (begins with {content[:4].hex() or 'nothing'})"
        )
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist()
    expected = header_bytes + prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: is truncated or damaged: {len(content):,} bytes, expected {expected:,} for shape {shape}; "
            "delete it and pass --download to fetch it again"
        )
    array = np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)
    return torch.from_numpy(array.copy())  # frombuffer's array is read-only, which torch does not know
