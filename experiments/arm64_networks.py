"""The networks of arm64_instructions.py: dense and compact, float32 and int8, as ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from surgery_speed import kill_half_

import compress
import export
from compress.models import build

CALIBRATION_IMAGES = 64


def write_networks(name: str, shape: tuple[int, int, int], paths: Mapping[tuple[str, str], Path]) -> dict[str, int]:
    """Zero half of the free channels of an untrained network, remove them, and export both forms in both precisions.

    Args:
        name: A key of `compress.models.MODELS`.
        shape: Of an image: channels, height, width.
        paths: Where the files go, by form (dense, compact) and precision (float32, int8).

    Returns:
        MACs of each form.
    """
    torch.manual_seed(0)
    model = build(name, num_classes=10, in_channels=shape[0], image_size=shape[1]).eval()
    x = torch.randn(1, *shape)
    kill_half_(model, x, shifts=False)
    result = compress.compact(model, (x,))
    images = np.random.default_rng(0).standard_normal((CALIBRATION_IMAGES, *shape)).astype(np.float32)
    for form, module in (("dense", model), ("compact", result.model)):
        graph = export.graph_of(module, (x,), export.Interface(dynamic_batch=True))
        export.write(graph, paths[form, "float32"])
        # Nothing was learnt, so that there is no accuracy to lose.
        judge = export.Judge(lambda _: 1.0, images)
        export.write(export.to_int8(graph, export.Calibration(images), judge).graph, paths[form, "int8"])
    return {"dense": result.report.macs_before, "compact": result.report.macs_after}
