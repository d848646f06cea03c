"""Passes over an exported graph, each against ONNX Runtime with its optimisations and without."""

import itertools

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export import to_onnx
from export.passes import PASSES, REPAIRS, run


class PaddedPool(nn.Module):
    """Zeros around, and the largest of what is there: 0 in a window of negative numbers that touches them."""

    def __init__(self, pad, value=0.0, mode="constant"):
        super().__init__()
        self.conv, self.pad, self.value, self.mode = nn.Conv2d(3, 4, 1), pad, value, mode

    def forward(self, x):
        padded = F.pad(self.conv(x), self.pad, self.mode, *([self.value] if self.mode == "constant" else []))
        return F.max_pool2d(padded, 2, 1, ceil_mode=True)


PADS = [(0, 1, 0, 1), (1, 1, 1, 1), (0, 1), (2, 0, 0, 3)]
WAYS = list(itertools.product([False, True], repeat=2))  # dynamic batch, simplify
QUICK = {*((PADS[0], way) for way in WAYS), *zip(PADS[1:], WAYS[1:], strict=True)}
"""Every way with one padding, and every padding in one way; each takes an export."""


@pytest.mark.parametrize(
    ("pad", "way"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK), id=str(case))
        for case in itertools.product(PADS, WAYS)
    ],
)
def test_zeros_in_front_of_a_max_pool_stay_zeros(tmp_path, pad, way):
    """ONNX Runtime would make them the pool's own padding, which is ignored; the file is verified with its defaults."""
    torch.manual_seed(0)
    model, x = PaddedPool(pad), torch.randn(2, 3, 6, 6)
    nn.init.constant_(model.conv.bias, -5.0)  # nothing but padding is 0 or more
    path = tmp_path / "pool.onnx"
    dynamic_batch, simplify = way
    to_onnx(model, (x,), path, dynamic_batch=dynamic_batch, simplify=simplify)
    with torch.no_grad():
        expected = model(x)
    assert float(expected.max()) == 0
    got = onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("value", "mode"), [(0.0, "replicate"), (1.5, "constant"), (float("-inf"), "constant")])
def test_other_padding_is_exported_as_it_is(tmp_path, value, mode):
    torch.manual_seed(0)
    model, x = PaddedPool((0, 1, 0, 1), value, mode), torch.randn(2, 3, 6, 6)
    report = to_onnx(model, (x,), tmp_path / "pool.onnx")
    assert report.random.max_relative_difference < 1e-6


def test_every_pass_leaves_a_graph_alone_that_it_has_nothing_to_do_with(tmp_path):
    path = tmp_path / "conv.onnx"
    to_onnx(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2, padding=1)), (torch.randn(1, 3, 8, 8),), path)
    model = onnx.load(path)
    before = model.SerializeToString()
    assert run({**REPAIRS, **PASSES}, model) == ()
    assert model.SerializeToString() == before
    assert list(PASSES) == ["constants", "batch-norm", "dead-branches", "identities"]
