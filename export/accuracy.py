"""Share of images that an ONNX graph classifies rightly, in ONNX Runtime."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from export.errors import ExportError
from export.runtime import open_session

Batches = Iterable[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]
"""Images as the network takes them, [n, C, H, W], and their classes, [n]."""


def accuracy_of(model: onnx.ModelProto, batches: Batches) -> float:
    """Run a graph with one input on labelled images; its first output holds a score for each class, [n, classes].

    A graph whose batch has a fixed size gets its images in portions of that size.

    Raises:
        ExportError: There are no images, they cannot be run, or are no multiple of a fixed batch.
    """
    session = open_session(model, "the graph")
    entry = session.get_inputs()[0]
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) else None
    right = total = 0
    for images, labels in batches:
        size = fixed or len(images)
        if len(images) % size:
            raise ExportError(f"{len(images)} images cannot be run in batches of {size}, which the graph is fixed to")
        for start in range(0, len(images), size):
            portion = images[start : start + size]
            try:
                (scores, *_) = session.run(None, {entry.name: portion})
            except Exception as error:  # ONNX Runtime's have no common base class
                raise ExportError(f"ONNX Runtime fails on images of shape {portion.shape}: {error}") from error
            right += int((scores.argmax(1) == labels[start : start + size]).sum())
        total += len(images)
    if total == 0:
        raise ExportError("there are no images to measure the accuracy on")
    return right / total
