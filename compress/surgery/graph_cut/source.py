"""Where in the user's code an operation stands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import fx

from compress.graph.aten.labels import place
from compress.graph.aten.trace import base_name

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)(?:\n[ \t]+(?P<code>[^\n]+))?')
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


def source_line(node: fx.Node) -> str:
    """``models/shufflenetv2.py:94, in forward: x1, x2 = x.chunk(2, dim=1)``.

    The innermost line that is not torch's own, the file with its folder only; where the trace holds none, the module
    and the operation.
    """
    frames = [f for f in _FRAME.finditer(node.meta.get("stack_trace") or "") if not f["file"].startswith(_TORCH)]
    if not frames:
        return f"{place(node)} ({base_name(node)})"
    frame = frames[-1]
    where = f"{'/'.join(Path(frame['file']).parts[-2:])}:{frame['line']}, in {frame['function']}"
    return f"{where}: {frame['code'].strip()}" if frame["code"] else where
