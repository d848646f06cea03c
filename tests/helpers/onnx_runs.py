"""ONNX files in ONNX Runtime, and numbers for them."""

from pathlib import Path

import numpy as np
import onnxruntime


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)
