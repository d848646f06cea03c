"""One network, one case: damage it, compact it, and compare the two by our own means.

Nothing of the certificate that ``compact`` makes is used: other inputs, other sizes, a batch of two.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from exam_damage import calibrate_, kill_groups_, kill_scales_, randomise_
from exam_networks import Network
from exam_rows import CARRIED, Row, is_exact, places, without_places
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from compress.errors import CompressError
from compress.graph import channel_graph
from compress.surgery import CompactResult, compact
from export import ExportError, to_onnx

TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "onnx": 1e-4}
"""Allowed difference relative to the largest output. Float64: rounding is 1e-16, a real mistake 1e-2. Float32: sums in
another order. ONNX Runtime: other kernels."""

ROUNDINGS = 4
"""In float32 the difference may be this many times the masked network's own rounding error, where that is more: its
distance from itself in float64. Each of the two networks has such an error, and not the same on the same image."""

MIN_SENSITIVITY = 1e-3
"""Two random inputs must give outputs that differ by more, relative to the largest: else a comparison shows nothing."""

FIXED = "height and width stay those of the example inputs"
"""In the report of a graph that takes images of one size: those are compared, and the row tells the size."""

CALIBRATION_IMAGES = 4
SEED, ONNX_SEED = 20, 2000


class Difference(Exception):  # noqa: N818 - a finding, told in the table
    """Two networks that should compute the same do not."""


def examine(network: Network, case: str, *, prefer: str | None = None, onnx: bool = True) -> Row:
    """Damage, compact, compare, count; whatever happens is told in the row."""
    row = Row(network.suite, network.name, network.family, case)
    started = time.process_time()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            _examine(network, row, prefer, onnx=onnx)
    except CompressError as error:
        row.status, row.note = "refused", _told(error)
    except ExportError as error:
        row.status, row.note = "onnx", _told(error)
    except Difference as error:
        row.status, row.note = "wrong", str(error)
    except Exception as error:  # whatever breaks is what the exam is for
        row.status = "memory" if _is_memory(error) else "crashed"
        row.note = _told(error)
    row.seconds["total"] = time.process_time() - started
    return row


def _examine(network: Network, row: Row, prefer: str | None, *, onnx: bool) -> None:
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    model = network.quietly_built()
    example = (images(1, network.size, seed=SEED),)
    randomise_(model, generator)
    with _timed(row, "graph"):
        graph = channel_graph(model, example)
    killed = (kill_groups_ if row.case == "a" else kill_scales_)(model, graph, generator)
    calibrate_(model, images(CALIBRATION_IMAGES, network.size, seed=SEED + 1), generator)
    row.shapes = accepted_sizes(model, network.size)

    with _timed(row, "compact"):
        result = run_compact(model, example, prefer)
    row.module = "graph" if isinstance(result.model, fx.GraphModule) else "class"
    if any(FIXED in note for note in result.report.notes):
        row.shapes = row.shapes[:1]
    row.params = [result.report.params_before, result.report.params_after]
    row.macs = [result.report.macs_before, result.report.macs_after]
    count(row, killed, result)
    row.errors["float32"] = compare(model, result.model, row.shapes, torch.float32)
    onnx_image = images(1, network.size, seed=ONNX_SEED)
    masked_outputs = tensors(model(onnx_image))
    single = copy.deepcopy(model)
    model.double()
    row.rounding = rounding(model, single, [*images_of(row.shapes), onnx_image])
    del single
    row.sensitivity = sensitivity(model, network.size)
    double = run_compact(model, tuple(x.double() for x in example), prefer)
    row.errors["float64"] = compare(model, double.model, row.shapes, torch.float64)
    _judge(row)
    if onnx and row.status == "ok":
        del model, double
        row.errors["onnx"] = compare_in_onnxruntime(masked_outputs, result.model, network.size)
        _judge(row)


def run_compact(model: nn.Module, example: tuple[Tensor, ...], prefer: str | None) -> CompactResult:
    """``compact``; with ``prefer`` where this version of it knows that argument."""
    if prefer is None or "prefer" not in inspect.signature(compact).parameters:
        return compact(model, example)
    arguments: dict[str, Any] = {"prefer": prefer}
    return compact(model, example, **arguments)


def _judge(row: Row) -> None:
    for precision, error in row.errors.items():
        allowed = TOLERANCES[precision]
        if precision != "float64" and row.rounding is not None:
            allowed = max(allowed, ROUNDINGS * row.rounding)
        if not error <= allowed:
            row.status = "onnx" if precision == "onnx" else "wrong"
            row.note = f"{precision}: differs by {error:.1e} of the largest output"
            return
    if row.sensitivity is not None and not row.sensitivity > MIN_SENSITIVITY:
        row.status, row.note = "insensitive", f"outputs of two inputs differ by {row.sensitivity:.1e}"


# --- comparisons -----------------------------------------------------------------------------------------------------


def images(count: int, size: int, seed: int) -> Tensor:
    """Standard normal images, float32 ``[count, 3, size, size]``."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tensors(outputs: Any) -> list[Tensor]:
    """Every tensor that a network returned: of a tuple, a dictionary, or one alone."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def accepted_sizes(model: nn.Module, size: int) -> list[int]:
    """``size``, and the first other size that the network takes: of the other parity, or else half as large again."""
    for other in (size + size // 2 + 1 - size % 2, size + size // 2, 2 * size):
        try:
            model(images(2, other, seed=0))
        except Exception:  # noqa: S112 - whatever a forward raises is its way of saying no
            continue
        return [size, other]
    return [size]


def compare(model: nn.Module, small: nn.Module, sizes: list[int], dtype: torch.dtype) -> float:
    """Largest difference of any output, relative to the largest entry of that output, over all sizes."""
    worst = 0.0
    for x in images_of(sizes):
        x = x.to(dtype)
        expected = tensors(model(x))
        try:
            got = tensors(small.eval()(x) if not isinstance(small, fx.GraphModule) else small(x))
        except Exception as error:
            raise Difference(f"the compact network fails on {tuple(x.shape)}: {_told(error)}") from error
        worst = max(worst, _difference(expected, got, f"{str(dtype)[6:]}, {x.shape[-1]} px"))
    return worst


def images_of(sizes: list[int]) -> list[Tensor]:
    """The images that two networks are compared on, two of each size."""
    return [images(2, size, seed=1000 + size) for size in sizes]


def rounding(double: nn.Module, single: nn.Module, batches: list[Tensor]) -> float:
    """How far a float32 network is from itself in float64."""
    return max(_difference(tensors(double(x.double())), tensors(single(x)), "rounding") for x in batches)


def compare_in_onnxruntime(expected: list[Tensor], small: nn.Module, size: int) -> float:
    """The same for the compact network as an ONNX file, for one image; the original's outputs are given."""
    x = images(1, size, seed=ONNX_SEED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(small, (x,), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return _difference(expected, [torch.from_numpy(y) for y in got], f"ONNX Runtime, {size} px")


def _difference(expected: list[Tensor], got: list[Tensor], where: str) -> float:
    if [e.shape for e in expected] != [g.shape for g in got]:
        raise Difference(f"other shapes ({where}): {[tuple(g.shape) for g in got]}")
    worst = 0.0
    for e, g in zip(expected, got, strict=True):
        if not bool(e.isfinite().all() and g.isfinite().all()):
            raise Difference(f"an output is not finite ({where})")
        largest = float(e.abs().max())
        difference = float((e.double() - g.double()).abs().max())
        worst = max(worst, difference / largest if largest else difference)
    return worst


def sensitivity(model: nn.Module, size: int) -> float:
    """How far the outputs of two images differ, relative to the largest; the smallest over the outputs."""
    dtype = next(model.parameters()).dtype
    outputs = tensors(model(images(2, size, seed=3000 + size).to(dtype)))
    return min(float((y[0] - y[1]).abs().max() / y.abs().max().clamp_min(1e-300)) for y in outputs)


# --- counts ----------------------------------------------------------------------------------------------------------


def count(row: Row, killed: dict[str, Tensor], result: CompactResult) -> None:
    """Put into ``row`` what became of every dead channel."""
    kept, missed, missed_at = Counter[str](), Counter[str](), Counter[str]()
    for name, reasons in _stayed(killed, result, row):
        for reason, number in reasons.items():
            plain = without_places(reason)
            if CARRIED in reason:
                row.carried += number
            elif is_exact(plain):
                kept[plain] += number
            else:
                missed[plain] += number
                missed_at[f"{plain} [{places(reason) or name}]"] += number
    row.kept, row.missed, row.missed_at = (dict(c.most_common()) for c in (kept, missed, missed_at))


def _stayed(killed: dict[str, Tensor], result: CompactResult, row: Row) -> Iterator[tuple[str, Counter[str]]]:
    """(layer, reason -> channels) for the dead channels of each layer that stay; counts dead and removed on the way."""
    for name, rows in killed.items():
        layer = name.rpartition(".")[0]
        plan = result.plan.parameters.get(name)
        stays = rows & (layer not in result.plan.constant_layers)
        if plan is not None and 0 in plan.indices:
            stays &= torch.isin(torch.arange(rows.numel()), torch.tensor(plan.indices[0], dtype=torch.int64))
        row.dead += int(rows.sum())
        row.removed += int((rows & ~stays).sum())
        if row.case != "a" or not bool(stays.any()):
            continue
        width = result.report.layers.get(name.removesuffix(".weight"))
        reasons: Counter[str] = Counter(width.kept if width else {})
        if extra := int(stays.sum()) - reasons.total():
            reasons["no reason given"] += extra
        yield layer, reasons


# --- small things ----------------------------------------------------------------------------------------------------


class _timed:  # noqa: N801 - reads as a verb
    """Note the seconds of processor time of a ``with`` block."""

    def __init__(self, row: Row, what: str):
        self.row, self.what = row, what

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.row.seconds[self.what] = time.process_time() - self.started


def _told(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
