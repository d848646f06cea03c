"""uint8 images in: what the graph computes, against the formula."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import export
from export.errors import ExportError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_are_normalised_inside(tmp_path, layout, rng):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30, 5)).eval()
    preprocess = export.Preprocess(MEAN, STD, layout)
    example = preprocess.arranged(torch.arange(90).reshape(1, 3, 5, 6).to(torch.uint8))
    path = tmp_path / "m.onnx"
    export.to_onnx(export.WithPreprocess(network, preprocess), (example,), path)
    pixels = rng.integers(0, 256, (1, 3, 5, 6), dtype=np.uint8)
    normalised = (pixels / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    with torch.no_grad():
        expected = network(torch.from_numpy(normalised.astype(np.float32))).numpy()
    given = pixels if layout == "nchw" else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_inputs()[0].shape == ([1, 3, 5, 6] if layout == "nchw" else [1, 5, 6, 3])
    np.testing.assert_allclose(session.run(None, {"input": given})[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((MEAN, STD, "chw"), "layout is 'chw', expected nchw or nhwc"),
        ((MEAN, STD[:1]), "must be given for the same channels"),
        (((0.5,), (0.0,)), "every std must be above 0"),
    ],
)
def test_what_cannot_be_computed_is_refused(arguments, message):
    with pytest.raises(ExportError, match=message):
        export.Preprocess(*arguments)
