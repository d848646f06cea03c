"""ONNX Runtime as a module, so that files are compared by the same certificate as networks."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.graph.onnx import PROTOBUF_LIMIT, OnnxNetwork

QUIET = 4
"""Severity of what ONNX Runtime logs by itself: only what ends the process; errors are raised and told by us."""


class Session(nn.Module):
    """An ONNX model that computes in ONNX Runtime.

    Args:
        model: the model.
        network: the same as a module: its copy in another precision, which ONNX Runtime does not have.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """

    def __init__(self, model: onnx.ModelProto, network: OnnxNetwork):
        super().__init__()
        self.network = [network]  # not a submodule: its parameters are not this module's
        precisions = [p.dtype for p in network.parameters() if p.is_floating_point()]
        coarsest = max(precisions, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
        self.precision = nn.Parameter(torch.empty(0, dtype=coarsest), requires_grad=False)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            with tempfile.TemporaryDirectory() as folder:
                self.session = onnxruntime.InferenceSession(_source(model, Path(folder)), options)
        except Exception as error:  # ONNX Runtime raises errors of many kinds
            raise ModelError(f"ONNX Runtime does not take this model: {str(error).strip()}") from error
        self.names = [value.name for value in self.session.get_inputs()]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """What the model returns."""
        arrays = {name: x.detach().cpu().numpy() for name, x in zip(self.names, inputs, strict=True)}
        return [torch.from_numpy(y.copy()) for y in self.session.run(None, arrays)]

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        """A copy computes in torch: the certificate turns it into float64."""
        return copy.deepcopy(self.network[0], memo)


def _source(model: onnx.ModelProto, folder: Path) -> bytes | str:
    """The model as ONNX Runtime reads it: at once, or from files where it is too large."""
    if model.ByteSize() < PROTOBUF_LIMIT:
        content: bytes = model.SerializeToString()
        return content
    path = folder / "model.onnx"
    written = onnx.ModelProto()
    written.CopyFrom(model)
    onnx.save_model(written, path, save_as_external_data=True, location="model.data")
    return str(path)
