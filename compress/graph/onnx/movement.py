"""ONNX operations that move data, in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.graph.onnx.node import Node, Unhandled, Value, known, tensors


def reshape(node: Node, x: Tensor, shape: Value) -> Tensor:
    """Reshape: 0 copies a size, -1 takes what is left."""
    wanted = known(shape)
    if not node.get("allowzero", 0):
        wanted = [int(x.shape[i]) if size == 0 else size for i, size in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = x.numel() // rest if rest else 0
    return x.reshape(wanted)


def flatten(node: Node, x: Tensor) -> Tensor:
    """Flatten to a matrix."""
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node: Node, x: Tensor) -> Tensor:
    """Transpose."""
    return x.permute(list(node.get("perm", reversed(range(x.ndim)))))


def squeeze(_node: Node, x: Tensor, axes: Value = None) -> Tensor:
    """Squeeze the named dimensions, or all of size 1."""
    dims = [d for d in range(x.ndim) if x.shape[d] == 1] if axes is None else known(axes)
    return x.squeeze([d % x.ndim for d in dims]) if dims else x


def unsqueeze(_node: Node, x: Tensor, axes: Value) -> Tensor:
    """Unsqueeze at the named dimensions of the result."""
    ndim = x.ndim + len(known(axes))
    for dim in sorted(d % ndim for d in known(axes)):
        x = x.unsqueeze(dim)
    return x


def concat(node: Node, *inputs: Value) -> Tensor:
    """Concat along one dimension."""
    return torch.cat(tensors(*inputs), node.get("axis", 0))


def split(node: Node, x: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
    """Split by sizes, or evenly: the last part may be smaller."""
    axis = node.get("axis", 0)
    if sizes is None:
        total, parts = int(x.shape[axis]), node.get("num_outputs", node.declared)
        each = math.ceil(total / parts)
        sizes = [each] * (total // each) + ([total % each] if total % each else [])
        sizes += [0] * (parts - len(sizes))
    return tuple(torch.split(x, [int(size) for size in sizes], axis))


def slice_(_node: Node, x: Tensor, starts: Value, ends: Value, axes: Value = None, steps: Value = None) -> Tensor:
    """Slice, dimension by dimension; backwards it is a flip."""
    begins, stops = known(starts), known(ends)
    dims = list(range(len(begins))) if axes is None else [axis % x.ndim for axis in known(axes)]
    strides = [1] * len(begins) if steps is None else known(steps)
    for dim, start, end, step in zip(dims, begins, stops, strides, strict=True):
        size = int(x.shape[dim])
        first, last, stride = slice(start, end, step).indices(size)
        if step < 0:
            if (first, last, stride) != (size - 1, -1, -1):
                raise Unhandled("a part, backwards")
            x = x.flip([dim])
        elif (first, last, stride) != (0, size, 1) or (dim > 1 and not (start == 0 and stop_is_open(end))):
            x = torch.ops.aten.slice.Tensor(x, dim, first, max(first, last), stride)
    return x


def stop_is_open(end: int) -> bool:
    """Whether the end of a Slice is that of any image: exporters write the largest number of 32 or 64 bits."""
    return end >= np.iinfo(np.int32).max


def gather(node: Node, x: Value, indices: Value) -> Tensor:
    """Gather along one dimension: one position, or those of a table that is looked up by others."""
    axis = node.get("axis", 0)
    (x,) = tensors(x)
    assert isinstance(x, Tensor)
    if isinstance(indices, Tensor):
        if axis == 0 and x.ndim == 2:
            return F.embedding(indices, x)
        raise Unhandled("positions that depend on the input")
    positions, size = np.asarray(indices), int(x.shape[axis])
    if positions.ndim == 0:
        return x.select(axis, int(positions) % size)
    return picked(node, x, torch.tensor(positions.tolist(), device=x.device))


def gather_nd(node: Node, x: Value, indices: Value) -> Tensor:
    """GatherND of positions that are known numbers."""
    (x,) = tensors(x)
    assert isinstance(x, Tensor)
    if isinstance(indices, Tensor):
        raise Unhandled("positions that depend on the input")
    return picked(node, x, torch.tensor(np.asarray(indices).tolist(), device=x.device))


def picked(node: Node, x: Value, positions: Tensor) -> Tensor:
    """Gather and GatherND of positions, int64, that are part of the network."""
    (x,) = tensors(x)
    if node.op == "GatherND":
        if node.get("batch_dims", 0):
            raise Unhandled("positions for each image")
        several: Tensor = x[positions.unbind(-1)]
        return several
    index: list[Any] = [slice(None)] * (node.get("axis", 0) % x.ndim)
    result: Tensor = x[(*index, positions)]
    return result


def expand(_node: Node, x: Tensor, shape: Value) -> Tensor:
    """Expand: both sides are broadcast."""
    wanted = torch.broadcast_shapes(tuple(x.shape), tuple(known(shape)))  # type: ignore[no-untyped-call]
    return x.expand(wanted)


def tile(_node: Node, x: Tensor, repeats: Value) -> Tensor:
    """Tile."""
    return x.repeat(known(repeats))


def pad(node: Node, x: Tensor, pads: Value, value: Value = None, axes: Value = None) -> Tensor:
    """Pad: a constant around all dimensions, or reflected and repeated borders of height and width."""
    given, mode = known(pads), node.get("mode", "constant")
    dims = [d % x.ndim for d in (range(x.ndim) if axes is None else known(axes))]
    amounts = [0] * 2 * x.ndim
    for i, dim in enumerate(dims):
        behind = 2 * (x.ndim - 1 - dim)
        amounts[behind], amounts[behind + 1] = given[i], given[i + len(dims)]
    while amounts and amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    if not amounts:
        return x
    if mode == "constant":
        return F.pad(x, amounts, value=0.0 if value is None else float(np.asarray(value).reshape(())))
    if mode not in ("reflect", "edge") or min(amounts) < 0:
        raise Unhandled(f"the mode {mode}")
    amounts += [0] * (2 * (x.ndim - 2) - len(amounts))
    if len(amounts) > 2 * (x.ndim - 2) or x.ndim not in (3, 4, 5):
        raise Unhandled("borders of channels")
    return F.pad(x, amounts, mode="reflect" if mode == "reflect" else "replicate")


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """DepthToSpace: torch's pixel shuffle in mode CRD, the other order else."""
    block = node.get("blocksize", 1)
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = (int(size) for size in x.shape)
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """SpaceToDepth."""
    block = node.get("blocksize", 1)
    n, c, h, w = (int(size) for size in x.shape)
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def resize(node: Node, x: Tensor, _roi: Value = None, scales: Value = None, sizes: Value = None) -> Tensor:
    """Resize of height and width, in the modes that torch has."""
    if node.get("axes", None) is not None or x.ndim != 4 or node.get("antialias", 0):
        raise Unhandled("its axes or antialiasing")
    mode, place = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch" or node.get("exclude_outside", 0):
        raise Unhandled("its aspect ratio, or what lies outside")
    if sizes is not None and np.asarray(sizes).size:
        wanted, factors = known(sizes), None
    else:
        factors = [float(s) for s in np.asarray(scales).reshape(-1)]
        wanted = [math.floor(size * s) for size, s in zip(x.shape, factors, strict=True)]
    if wanted[:2] != [int(size) for size in x.shape[:2]]:
        raise Unhandled("another number of channels")
    size = wanted[2:]
    exact = factors is None or all(f * n == w for f, n, w in zip(factors, x.shape, wanted, strict=True))
    if mode == "nearest" and exact and _copies_pixels(node, place, x, size):
        return F.interpolate(x, size=size, mode="nearest")
    smooth = {"linear": "bilinear", "cubic": "bicubic"}.get(mode)
    usual = smooth != "bicubic" or abs(node.get("cubic_coeff_a", -0.75) + 0.75) < 1e-9
    centred = place == "half_pixel" or (place == "pytorch_half_pixel" and 1 not in size)
    if smooth is None or not exact or not usual or not (centred or place == "align_corners"):
        raise Unhandled(f"the mode {mode} at {place}")
    return F.interpolate(x, size=size, mode=smooth, align_corners=place == "align_corners")


def _copies_pixels(node: Node, place: str, x: Tensor, size: Sequence[int]) -> bool:
    """Whether nearest neighbours are those of torch; of whole factors, the centre of a copy lies in its own pixel."""
    if place == "asymmetric":
        return bool(node.get("nearest_mode", "round_prefer_floor") == "floor")
    return "half_pixel" in place and all(w % int(n) == 0 for w, n in zip(size, x.shape[2:], strict=True))
