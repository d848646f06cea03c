"""The front end for ONNX files: the graph of a file as a torch module, which all analyses read."""

from compress.graph.onnx.files import OPSETS, PROTOBUF_LIMIT, read_model
from compress.graph.onnx.network import File, OnnxNetwork, Source
from compress.graph.onnx.statics import fold_constants

__all__ = ["OPSETS", "PROTOBUF_LIMIT", "File", "OnnxNetwork", "Source", "fold_constants", "read_model"]
