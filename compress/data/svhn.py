"""``svhn``: Street View House Numbers, 73,257 training and 26,032 test images, 32x32 colour (Netzer et al. 2011).

Read and fetched by torchvision: ``DATA_DIR/train_32x32.mat`` and ``DATA_DIR/test_32x32.mat``.
"""

from pathlib import Path

import torch

from compress.data.source import Source, required_folder
from compress.data.split import TensorSplit
from compress.errors import DataError


def load_svhn(data_dir: Path | None, *, download: bool) -> Source:
    """See ``Loader``; with ``download`` both files are fetched, the test file without being read."""
    from compress.torchvision_compat import torchvision

    root = required_folder("svhn", data_dir, holds="train_32x32.mat and test_32x32.mat", may_be_new=download)
    files = {split: torchvision.datasets.SVHN.split_list[split] for split in ("train", "test")}  # URL, name, md5
    if download:
        for url, file, md5 in files.values():
            try:
                torchvision.datasets.utils.download_url(url, root, file, md5)
            except (OSError, RuntimeError) as error:
                raise DataError(f"svhn: the download of {url} into {root} failed: {error}") from error
    missing = [file for _, file, _ in files.values() if not (root / file).is_file()]
    if missing:
        raise DataError(f"svhn: {root} lacks {', '.join(missing)}; pass --download to fetch what is missing")

    def read(split: str) -> TensorSplit:
        try:
            dataset = torchvision.datasets.SVHN(root, split=split)
        except (OSError, RuntimeError, ValueError) as error:
            path = root / files[split][1]
            raise DataError(f"svhn: {path} is damaged; delete it and pass --download to fetch it ({error})") from error
        return TensorSplit(torch.from_numpy(dataset.data), torch.from_numpy(dataset.labels))

    classes = tuple(str(digit) for digit in range(10))
    return Source(classes=classes, train=read("train"), validation=None, load_test=lambda: read("test"))
