"""``cifar10`` and ``cifar100``: 50,000 training and 10,000 test images, 32x32 colour (Krizhevsky 2009).

Read and fetched by torchvision, which also checks the files' checksums: ``DATA_DIR/cifar-10-batches-py/`` and
``DATA_DIR/cifar-100-python/``.
"""

import warnings
from functools import partial
from pathlib import Path

import torch

from compress.data.source import Loader, Source, required_folder
from compress.data.split import TensorSplit
from compress.errors import DataError


def _load(name: str, class_name: str, folder: str, data_dir: Path | None, *, download: bool) -> Source:
    from compress.torchvision_compat import torchvision

    root = required_folder(name, data_dir, holds=f"{folder}/", may_be_new=download)
    dataset_class = getattr(torchvision.datasets, class_name)

    def read(*, train: bool, fetch: bool) -> tuple[TensorSplit, tuple[str, ...]]:
        try:
            with warnings.catch_warnings():
                # The published pickles were written by an old numpy, in a form that numpy 2.4 deprecates.
                warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
                dataset = dataset_class(root, train=train, download=fetch)
        except (OSError, RuntimeError) as error:
            what = "the download failed" if fetch else "is missing or damaged; pass --download to fetch it"
            raise DataError(f"{name}: {root / folder}: {what} ({error})") from error
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return TensorSplit(images, torch.tensor(dataset.targets)), tuple(dataset.classes)

    # Training files are only taken where the checksums of the test files hold too.
    train, classes = read(train=True, fetch=download)
    return Source(classes=classes, train=train, validation=None, load_test=lambda: read(train=False, fetch=False)[0])


load_cifar10: Loader = partial(_load, "cifar10", "CIFAR10", "cifar-10-batches-py")
load_cifar100: Loader = partial(_load, "cifar100", "CIFAR100", "cifar-100-python")
