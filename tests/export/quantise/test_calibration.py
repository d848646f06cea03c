"""Ranges against those of all values, computed directly."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.errors import ExportError
from export.naming import named
from export.quantise.calibration import IMAGES_AT_ONCE, METHODS, measured_ranges


def every_value(model, images):
    """Every value of the graph on all images, by name."""
    model = named(model)
    names = [node.output[0] for node in model.graph.node]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options)
    runs = [session.run(names, {"input": images[i : i + 1]}) for i in range(len(images))]
    found = {name: np.concatenate([run[place].ravel() for run in runs]) for place, name in enumerate(names)}
    return {"input": images.ravel(), **found}


def ranges_of(known, method, count):
    model = named(known.graph.model)
    ranges = measured_ranges(model, known.images[:count], method, ["Conv", "Gemm", "Add", "Relu", "MaxPool"])
    return {name: [float(np.ravel(end)[0]) for end in data.range_value] for name, data in ranges.items()}


def test_min_max_is_that_of_all_images_of_every_portion(known):
    count = 2 * IMAGES_AT_ONCE + 3
    values = every_value(known.graph.model, known.images[:count])
    found = ranges_of(known, "min-max", count)
    assert len(found) >= 7
    for name, (low, high) in found.items():
        np.testing.assert_allclose((low, high), (values[name].min(), values[name].max()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_others_cut_the_far_ends_and_keep_most_values(known, method):
    count = IMAGES_AT_ONCE + 1
    values = every_value(known.graph.model, known.images[:count])
    for name, (low, high) in ranges_of(known, method, count).items():
        assert low >= values[name].min() - 1e-5
        assert high <= values[name].max() + 1e-5
        assert np.mean((values[name] >= low) & (values[name] <= high)) > 0.95


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((0, 3, 8, 8), np.float32), "the calibration set is empty"),
        (np.zeros((4, 1, 8, 8), np.float32), r"must be float32 \[3, 8, 8\] each.*got float32 \[1, 8, 8\]"),
        (np.zeros((4, 3, 8), np.float32), r"got float32 \[3, 8\]"),
        (np.zeros((4, 3, 8, 8), np.uint8), "got uint8"),
        (torch.zeros(4, 3, 8, 8), r"must be a NumPy array, got Tensor; a torch tensor has \.numpy\(\)"),
        (np.full((4, 3, 8, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_sets_that_do_not_fit_are_refused(known, images, message):
    with pytest.raises(ExportError, match=message):
        measured_ranges(known.graph.model, images, "min-max", ["Conv"])


def test_methods_are_named(known):
    with pytest.raises(ExportError, match="unknown calibration 'mean'; known: min-max, entropy, percentile"):
        measured_ranges(known.graph.model, known.images[:1], "mean", ["Conv"])
    assert list(METHODS) == ["min-max", "entropy", "percentile"]
