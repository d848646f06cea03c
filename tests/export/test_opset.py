"""The table of opsets."""

import onnx
import pytest

from export.errors import ExportError
from export.opset import DEFAULT_OPSET, FIRST_ONNXRUNTIME, resolve


def test_default_is_read_by_the_oldest_runtimes():
    assert resolve(None) == DEFAULT_OPSET == min(FIRST_ONNXRUNTIME) == 18
    releases = [tuple(map(int, version.split("."))) for version in FIRST_ONNXRUNTIME.values()]
    assert releases == sorted(releases)


@pytest.mark.parametrize("opset", FIRST_ONNXRUNTIME)
def test_every_opset_is_known_to_onnx(opset):
    assert resolve(opset) == opset <= onnx.defs.onnx_opset_version()


@pytest.mark.parametrize("opset", [-1, 17, 24])
def test_others_are_refused(opset):
    with pytest.raises(ExportError, match=f"opset {opset} cannot be exported; .*18.*23"):
        resolve(opset)
