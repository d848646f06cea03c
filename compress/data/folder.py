"""A folder of images by class: ``train/<class>/...``, optional ``val/`` and ``test/`` with the same classes.

Classes are the folders of ``train/`` in alphabetical order. Every image below a class folder counts, at any depth; what
is hidden (``.name``) and files without an image's suffix do not. Images are decoded with Pillow, as RGB, grey ones too.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from compress.data.source import Source
from compress.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
DECODING_THREADS = min(8, os.cpu_count() or 1)  # Pillow releases the interpreter's lock while it decodes
LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what a whole file of the format ends with, or nearly
NEARLY = 64  # bytes: of checksums, and of what cameras add
FILES_NAMED = 10  # of those that cannot be read; the others are counted
LAYOUT = "expected train/<class>/<images>, and optionally val/ and test/ with the same classes"

Made = TypeVar("Made")


class UnreadableImageError(DataError):
    """A file that is no image, or a damaged one."""


class FileSplit:
    """Images in files, decoded when asked for.

    Args of the constructor: ``paths`` and ``labels`` go together; with ``resize`` images are scaled bilinearly to
    ``image_size`` squared, without it one of another size is an error.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, *, image_size: int, resize: bool) -> None:
        self._paths = paths
        self.labels = labels
        self._resize = resize
        self.image_shape = (3, image_size, image_size)

    def __len__(self) -> int:
        return len(self._paths)

    def images(self, indices: Tensor) -> Tensor:
        """See ``Split.images``.

        Raises:
            DataError: An image cannot be decoded, or has another size than expected; the message names its file.
        """
        decoded = _of_each([self._paths[i] for i in indices.tolist()], self._decode)
        batch = np.stack(decoded) if decoded else np.empty((0, *self.image_shape[1:], 3), np.uint8)
        return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()

    def subset(self, indices: Tensor) -> "FileSplit":
        """See ``Split.subset``; reads nothing."""
        paths = [self._paths[i] for i in indices.tolist()]
        return FileSplit(paths, self.labels[indices], image_size=self.image_shape[1], resize=self._resize)

    def check_files(self) -> None:
        """Read the first and the last bytes of all files, and decode those that seem to be cut off.

        Raises:
            DataError: As ``images`` does.
        """
        _of_each(self._paths, self._check_file)

    def _check_file(self, path: Path) -> None:
        size, seems_whole = _header(path)
        if not self._resize:
            self._check_size(path, size)
        if not seems_whole:
            self._decode(path)

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as file:
                image = _eight_bits(file, path).convert("RGB")
        except DataError:
            raise
        except Exception as error:  # Pillow's decoders raise many types on damaged files
            raise _unreadable(path, error) from error
        if self._resize:
            image = image.resize(self.image_shape[1:], Image.Resampling.BILINEAR)
        self._check_size(path, image.size)
        return np.asarray(image)

    def _check_size(self, path: Path, size: tuple[int, int]) -> None:
        if size != self.image_shape[1:]:
            expected = self.image_shape[1]
            raise DataError(
                f"{path}: is {size[0]}x{size[1]} pixels, the first training image {expected}x{expected}; "
                "set image_size to scale all images to one size"
            )


def load_folder(root: Path, *, image_size: int | None) -> Source:
    """List the images of a folder; only the first image (and, without ``image_size``, headers) are read.

    Raises:
        DataError: The folder is missing, has another layout, holds no image, has classes in ``val/`` or ``test/`` that
            ``train/`` lacks, or its images have several sizes and ``image_size`` is not given.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; {LAYOUT}")
    train_folder = root / "train"
    if not train_folder.is_dir():
        raise DataError(f"{root}: has no folder train/; {LAYOUT}")
    classes = tuple(sorted(_class_folders(train_folder)))
    if not classes:
        raise DataError(f"{train_folder}: has no class folder; {LAYOUT}")

    paths, labels = _list_images(train_folder, classes)
    found = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in found]
    if empty:
        raise DataError(f"{train_folder}: no image in {', '.join(empty)}; image suffixes: {_suffixes()}; {LAYOUT}")
    if len(classes) == 1:
        raise DataError(f"{train_folder}: has one class alone, {classes[0]}, and so nothing to learn; {LAYOUT}")
    size = _common_size(paths) if image_size is None else image_size

    def listed(paths: list[Path], labels: list[int]) -> FileSplit:
        return FileSplit(paths, torch.tensor(labels), image_size=size, resize=image_size is not None)

    def other_split(folder: Path) -> FileSplit | None:
        if not folder.is_dir():
            return None
        unknown = sorted(_class_folders(folder) - set(classes))
        if unknown:
            raise DataError(f"{folder}: classes that {train_folder} lacks: {', '.join(unknown)}; {LAYOUT}")
        paths, labels = _list_images(folder, classes)
        if not paths:
            raise DataError(f"{folder}: holds no image; image suffixes: {_suffixes()}; remove the folder or fill it")
        return listed(paths, labels)

    train, test = listed(paths, labels), other_split(root / "test")
    if test is not None:
        test.check_files()  # now, not when training has ended
    return Source(classes=classes, train=train, validation=other_split(root / "val"), load_test=lambda: test)


def _class_folders(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            Path(parent, file)
            for parent, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not _hidden(Path(parent, file).relative_to(folder))
        )
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _common_size(paths: Sequence[Path]) -> int:
    first = paths[0]
    try:
        width, height = _size(first)
    except UnreadableImageError:
        _of_each(paths, _size)  # the others that cannot be read are named as well
        raise
    if width != height:
        raise DataError(f"{first}: is {width}x{height} pixels; set image_size to scale all images to a square")
    return width


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Grey images of 16 bits scaled to 8, which Pillow would clip to white; those of 32 bits have no known scale."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{path}: has pixels of 32 bits, whose scale is unknown; save it with 8 or 16 bits a channel")
    return image


def _size(path: Path) -> tuple[int, int]:
    return _header(path)[0]


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether the file ends as its format demands."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            size, last = image.size, LAST_BYTES.get(image.format or "", b"")
            file.seek(max(file.seek(0, os.SEEK_END) - NEARLY, 0))
            return size, last in file.read()
    except Exception as error:  # see FileSplit._decode
        raise _unreadable(path, error) from error


def _of_each(paths: Sequence[Path], make: Callable[[Path], Made]) -> list[Made]:
    """What ``make`` makes of each file, several at a time.

    Raises:
        DataError: Files cannot be read, or ``make`` has another fault to find with the first that has one.
    """

    def tried(path: Path) -> Made | UnreadableImageError:
        try:
            return make(path)
        except UnreadableImageError as error:
            return error

    made: list[Made] = []
    faults: list[UnreadableImageError] = []
    threads = DECODING_THREADS if get_worker_info() is None else 1  # there are several processes already
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(tried, paths):
            if isinstance(result, UnreadableImageError):
                faults.append(result)
            else:
                made.append(result)
    if len(faults) > 1:
        more = [f"and {len(faults) - FILES_NAMED} more"] if len(faults) > FILES_NAMED else []
        listed = [f"  {line}" for line in (*map(str, faults[:FILES_NAMED]), *more)]
        raise UnreadableImageError("\n".join([f"{len(faults)} images cannot be read", *listed]))
    if faults:
        raise faults[0]
    return made


def _unreadable(path: Path, error: Exception) -> UnreadableImageError:
    why = f"{type(error).__name__}: {error}".replace(f" '{path}'", "").replace(f" {str(path)!r}", "")
    return UnreadableImageError(f"{path}: cannot be read as an image ({why}); replace or delete it")


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
