"""Ranges of every value in a network, measured on real images, by ONNX Runtime's calibrators.

``min-max`` takes the smallest and the largest value seen. ``percentile`` leaves the farthest 0.001% of the values out,
``entropy`` cuts where the histogram loses the least information (Kullback-Leibler); both bring values beyond the range
to its end, and make the steps between finer.
"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from onnxruntime.quantization.calibrate import TensorsData

from export.errors import ExportError
from export.protos import inputs_of
from export.quiet import quiet

Array = npt.NDArray[Any]

METHODS = {
    "min-max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}

IMAGES_AT_ONCE = 16
"""The calibrators that make histograms hold every value of the network for so many images."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds images one after another."""

    def __init__(self, name: str, images: Iterator[Array]) -> None:
        self._feeds = ({name: image} for image in images)

    def get_next(self) -> dict[str, Array] | None:
        """The next image, or None at the end."""
        return next(self._feeds, None)


def measured_ranges(model: onnx.ModelProto, images: Array, method: str, op_types: Sequence[str]) -> TensorsData:
    """The range of every value that an op of `op_types` reads or gives.

    Args:
        model: With one input.
        images: [n, C, H, W], as the network takes them; they run one at a time.
        method: A key of `METHODS`.
        op_types: To be quantised.

    Raises:
        ExportError: The method is unknown, the images are none or do not fit, or ONNX Runtime cannot run them.
    """
    if method not in METHODS:
        raise ExportError(f"unknown calibration {method!r}; known: {', '.join(METHODS)}")
    name = require_calibration_set(model, images)
    one_by_one = (images[i : i + 1] for i in range(len(images)))
    # What ONNX Runtime and its calibrators raise has no common base class but Exception.
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            source = Path(folder) / "model.onnx"
            onnx.save(model, source)
            augmented = Path(folder) / "augmented.onnx"
            calibrator = create_calibrator(
                source, list(op_types), augmented_model_path=str(augmented), calibrate_method=METHODS[method]
            )
            while part := list(islice(one_by_one, IMAGES_AT_ONCE)):
                calibrator.collect_data(_Reader(name, iter(part)))
            return calibrator.compute_data()
    except Exception as error:
        raise ExportError(f"calibration ({method}) on {len(images)} images failed: {error}") from error


def require_array(images: object, what: str) -> None:
    """Refuse what ONNX Runtime cannot take, a torch tensor for example.

    Raises:
        ExportError: It is no NumPy array.
    """
    if not isinstance(images, np.ndarray):
        raise ExportError(f"{what} must be a NumPy array, got {type(images).__name__}; a torch tensor has .numpy()")


def require_calibration_set(model: onnx.ModelProto, images: Array) -> str:
    """The name of the input that takes the images.

    Raises:
        ExportError: There are none, they have another shape or type than the input, or are not finite.
    """
    require_array(images, "calibration images")
    inputs = inputs_of(model)
    if len(inputs) != 1:
        raise ExportError(f"int8 is for networks with one input, this one has {len(inputs)}")
    if len(images) == 0:
        raise ExportError("the calibration set is empty: give at least one image, better a hundred")
    (value,) = inputs
    kind = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    fits = len(sizes) == images.ndim and all(
        size in (None, got) for size, got in zip(sizes[1:], images.shape[1:], strict=False)
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if not fits or images.dtype != dtype:
        expected = ["any" if size is None else size for size in sizes[1:]]
        raise ExportError(
            f"calibration images must be {dtype} {expected} each, as {value.name} takes them; "
            f"got {images.dtype} {list(images.shape[1:])}"
        )
    if sizes[0] not in (None, 1):
        raise ExportError(f"int8 calibrates on single images, this graph takes batches of {sizes[0]}; export 1 or any")
    if not np.isfinite(images).all():
        raise ExportError("the calibration images hold values that are not finite")
    return str(value.name)
