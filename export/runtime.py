"""ONNX Runtime on this machine's CPU, as every check here uses it."""

from pathlib import Path

import onnx
import onnxruntime
import torch

from export.errors import ExportError


def open_session(
    model: onnx.ModelProto | bytes, what: str, *, optimise: bool = True, save_to: Path | None = None
) -> onnxruntime.InferenceSession:
    """Load a model, weights inside.

    Args:
        model: ONNX, or the bytes of a file in ONNX Runtime's own format.
        what: What it is called in messages.
        optimise: False runs the graph as it is written, node by node: the yardstick for what the runtime makes of it.
        save_to: Where the runtime writes the graph that it made of it.

    Raises:
        ExportError: ONNX Runtime cannot load it; the message holds its reason.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions, and need not reach the user's terminal beside that
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the caller granted torch
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    # ONNX Runtime's exceptions have no common base class but Exception.
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{what}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error
