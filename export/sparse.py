"""Zeros among the weights: how many there are, and weights stored by place and value where that is smaller.

ONNX stores a sparse weight as its values and their places in the flattened tensor, int64 each: 12 bytes a float32 that
is not zero in place of 4 bytes a float32. ONNX Runtime makes dense weights of them when it loads the file: less to
store, the same time for an inference.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

TELLING_SHARE = 0.05
"""Share of zeros from which their price is worth a note; a trained network has next to none by itself."""

NOT_SPARSE = "no weight is smaller as a sparse one, as it is from about two thirds of zeros on: stored as they were"

WEIGHT_DIMENSIONS = 2
"""Weights have at least so many; biases and scales are too few to count."""


@dataclass(frozen=True, slots=True)
class Zeros:
    """Attributes: values: weights in all, biases left out; zeros: how many of them are zero."""

    values: int
    zeros: int

    @property
    def share(self) -> float:
        """Of all weights; 0 of none."""
        return self.zeros / self.values if self.values else 0.0

    @property
    def telling(self) -> bool:
        """Whether there are so many that it is worth a word."""
        return self.share >= TELLING_SHARE

    def notes(self, *, sparse_is_smaller: bool) -> tuple[str, ...]:
        """What zeros are good for, where there are many.

        Args:
            sparse_is_smaller: Whether any weight takes fewer bytes as a sparse one.
        """
        if not self.telling:
            return ()
        otherwise = ", or with sparse initializers" if sparse_is_smaller else ""
        return (
            f"{self.share:.1%} of the weights are zero: ONNX Runtime multiplies by them all the same, so they save no "
            f"time. They make the file smaller when it is compressed (gzip){otherwise}; removing whole channels saves "
            "time",
        )


@dataclass(frozen=True, slots=True)
class Sparse:
    """Attributes: tensors: how many weights are stored sparsely; bytes_before, bytes_after: of the file's graph."""

    tensors: int
    bytes_before: int
    bytes_after: int

    def note(self) -> str:
        """What it was good for."""
        return (
            f"{self.tensors} weights are stored as sparse ones: {self.bytes_after:,} bytes in place of "
            f"{self.bytes_before:,}; ONNX Runtime makes them dense when it loads the file, and gains no time"
        )


def zeros_of(model: onnx.ModelProto) -> Zeros:
    """How many of the weights of a graph are zero."""
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if _is_weight(tensor)]
    return Zeros(sum(x.size for x in weights), sum(x.size - int(np.count_nonzero(x)) for x in weights))


def store_sparse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Sparse | None]:
    """A copy whose weights are sparse initializers where that takes fewer bytes; the model and None where none does.

    Only float32 weights are stored so.
    """
    smaller = {tensor.name: sparse for tensor in model.graph.initializer if (sparse := _smaller(tensor)) is not None}
    if not smaller:
        return model, None
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    kept = [tensor for tensor in changed.graph.initializer if tensor.name not in smaller]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    changed.graph.sparse_initializer.extend(smaller.values())
    return changed, Sparse(len(smaller), model.ByteSize(), changed.ByteSize())


def make_dense_(model: onnx.ModelProto) -> None:
    """Store every sparse weight of a graph densely, in place: onnx can infer no shapes behind sparse ones."""
    graph = model.graph
    for sparse in graph.sparse_initializer:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    graph.ClearField("sparse_initializer")


def _is_weight(tensor: onnx.TensorProto) -> bool:
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
    return tensor.data_type in kinds and len(tensor.dims) >= WEIGHT_DIMENSIONS


def _smaller(tensor: onnx.TensorProto) -> onnx.SparseTensorProto | None:
    if tensor.data_type != onnx.TensorProto.FLOAT or not _is_weight(tensor):
        return None
    flat = numpy_helper.to_array(tensor).ravel()
    places = np.flatnonzero(flat).astype(np.int64)
    if places.size == 0:
        return None
    sparse = onnx.helper.make_sparse_tensor(
        numpy_helper.from_array(flat[places], tensor.name), numpy_helper.from_array(places), list(tensor.dims)
    )
    return sparse if sparse.ByteSize() < tensor.ByteSize() else None
