"""Data sets by name, or any folder of images by class, with a validation split held out of the training split.

A new data set is one file here and one line in ``DATASETS``.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compress.data.cifar import load_cifar10, load_cifar100
from compress.data.digits import load_digits
from compress.data.folder import FileSplit, load_folder
from compress.data.mnist import load_fashion_mnist, load_mnist
from compress.data.normalise import MIN_STD
from compress.data.source import Loader, Source
from compress.data.split import Split, TensorSplit, channel_statistics, resized
from compress.data.storage import held_gib, in_memory, memory_limit_gib
from compress.data.stratified import complement, stratified_choice
from compress.data.svhn import load_svhn
from compress.errors import DataError

__all__ = ["DATASETS", "Data", "Split", "load"]

DATASETS: dict[str, Loader] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
}
FOLDER = "folder"  # the name that takes data_dir itself as a folder of images
STATISTICS_IMAGES = 100_000  # enough for a mean to 0.3% of a deviation; more would be decoded for it alone


@dataclass(frozen=True)
class Data:
    """A data set ready for training.

    ``mean`` and ``std`` are those of each channel over the training split alone (of more than ``STATISTICS_IMAGES``,
    over so many of them), in units where 255 is 1. ``load_test`` reads the test split, and returns None where the data
    set has none: call it once, when training has ended. ``image_shape`` is channels, height, width, the same for all
    splits; images are square. ``memory_gib`` is what images may take in memory; None where the data set comes in
    memory, whatever it takes.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    load_test: Callable[[], Split | None]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    memory_gib: float | None = None


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    download: bool = False,
    image_size: int | None = None,
    validation_share: float = 0.1,
    limit: int | None = None,
    memory_gib: float | None = None,
    seed: int = 0,
) -> Data:
    """Load a data set's training and validation splits.

    Args:
        name: A key of ``DATASETS``, the path of a folder of images (see ``folder``), or ``folder`` to take ``data_dir``
            itself as that folder.
        data_dir: Where the files of a packaged data set lie, as torchvision lays them out.
        download: Fetch them where they are missing.
        image_size: Height and width to scale the images to; by default they stay as they are.
        validation_share: Share of the training images held out for validation, by class in proportion, where the data
            set has no validation split of its own.
        limit: At most that many training images, chosen by class in proportion before validation is held out.
        memory_gib: What the images of a folder may take in memory, all splits together; by default a quarter of the
            machine's. A split that takes more is read from its files batch by batch.
        seed: Of both choices.

    Raises:
        DataError: The name is unknown, or files are missing, damaged or do not fit together.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"{name}: image_size is {image_size}, must be at least 1 pixel")
    if not 0 < validation_share < 1:
        raise DataError(f"{name}: validation_share is {validation_share}, must lie between 0 and 1")
    source = _source(name, data_dir, download=download, image_size=image_size)
    train, validation = _hold_out(name, source, validation_share=validation_share, limit=limit, seed=seed)
    limit_gib = memory_limit_gib(memory_gib)
    given = train
    train = in_memory(resized(given, image_size), limit_gib)
    no_choice = isinstance(given, TensorSplit) and isinstance(train, TensorSplit)
    validation = in_memory(resized(validation, image_size), limit_gib - held_gib(train))
    for split in (train, validation):
        if isinstance(split, FileSplit):
            split.check_files()  # now, not in the middle of training; those in memory have been decoded
    left_gib = limit_gib - held_gib(train) - held_gib(validation)
    mean, std = channel_statistics(_sample(train, STATISTICS_IMAGES, seed=seed))

    def load_test() -> Split | None:
        test = source.load_test()
        return None if test is None else in_memory(resized(test, image_size), left_gib)

    return Data(
        name=name,
        classes=source.classes,
        train=train,
        validation=validation,
        load_test=load_test,
        mean=mean,
        std=tuple(max(deviation, MIN_STD) for deviation in std),  # what normalise divides by
        image_shape=train.image_shape,
        memory_gib=None if no_choice else limit_gib,
    )


def _source(name: str, data_dir: Path | None, *, download: bool, image_size: int | None) -> Source:
    if name in DATASETS:
        return DATASETS[name](data_dir, download=download)
    if name == FOLDER:
        if data_dir is None:
            raise DataError(f"{name}: no data folder given; pass --data-dir DIR, the folder that holds train/<class>/")
        return load_folder(data_dir.expanduser(), image_size=image_size)
    folder = Path(name).expanduser()
    if folder.is_dir() or len(folder.parts) > 1:
        return load_folder(folder, image_size=image_size)
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise DataError(f"unknown data set {name!r}{hint}; known: {', '.join(DATASETS)}, or the path of a folder of images")


def _hold_out(
    name: str, source: Source, *, validation_share: float, limit: int | None, seed: int
) -> tuple[Split, Split]:
    train = source.train
    if limit is not None and limit < len(train):
        if limit < 1:
            raise DataError(f"{name}: limit is {limit}, must be at least 1 training image")
        train = _sample(train, limit, seed=seed)
    if source.validation is not None:
        return train, source.validation
    count = round(validation_share * len(train))
    if not 0 < count < len(train):
        raise DataError(
            f"{name}: a validation_share of {validation_share} of {len(train)} training images is {count} images; "
            "at least one must be left on either side: change the share, or use more images"
        )
    held_out = stratified_choice(train.labels, count, seed=seed)
    return train.subset(complement(held_out, len(train))), train.subset(held_out)


def _sample(split: Split, count: int, *, seed: int) -> Split:
    """At most ``count`` of its images, chosen by class in proportion."""
    return split if len(split) <= count else split.subset(stratified_choice(split.labels, count, seed=seed))
