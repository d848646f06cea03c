"""Dead channels leave an ONNX file, whatever framework it comes from."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from torch import Tensor

from compress.errors import ModelError, VerificationError, first_line
from compress.files import write_atomic
from compress.graph import ChannelGraph
from compress.graph.onnx import PROTOBUF_LIMIT, OnnxNetwork, fold_constants, read_model
from compress.graph.onnx.network import fixed_size, input_dtype
from compress.graph.onnx.opaque import NAMESPACE
from compress.surgery.analyse import Select, analyse
from compress.surgery.apply import fold_
from compress.surgery.bake import double_copy
from compress.surgery.cut import Cut, cut_graph
from compress.surgery.graph_cut import Blocked, Channels, GraphCut, Traces
from compress.surgery.input_sizes import other_sizes
from compress.surgery.onnx_cut import Statics, Unwritable, Writer, moving_numbers, numbers_at
from compress.surgery.onnx_session import Session
from compress.surgery.report import CompactReport, report_of, slow_widths
from compress.surgery.rounding import check_round_to
from compress.surgery.running import in_double
from compress.surgery.stopwatch import Stopwatch
from compress.surgery.verify import Agreement, certify
from compress.surgery.watch import other_runs

DEFAULT_SIDE = 224
"""Height and width that are tried where the file leaves them open."""

SIZES_WATCHED = 3
"""Further sizes at which the numbers are looked at that the file computes from shapes."""

NAMED = 3
"""How many of the inputs that became constants are told by name: old files list every weight."""

OWN = "compress."
"""What our entries in the metadata begin with; all others are the original's."""


@dataclass(frozen=True)
class OnnxResult:
    """The small model, and what was done.

    Attributes:
        model: with the original's names and metadata, and the certificate among the latter.
        report: as that of ``compact``; ``form`` is ``"onnx"``.
        files: those that the original was read from: itself, and weights beside it.
    """

    model: onnx.ModelProto
    report: CompactReport
    files: tuple[Path, ...]

    @property
    def removed(self) -> int:
        """How many channels left, counted at the layers that make them."""
        return sum(width.before - width.after for width in self.report.layers.values())

    @property
    def original_bytes(self) -> int:
        """The size of the original, with weights beside it."""
        return sum(file.stat().st_size for file in self.files)


def compact_onnx(
    path: Path,
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
    fold: bool = True,
    select: Select = "auto",
    round_to: int = 1,
) -> OnnxResult:
    """Remove every dead channel from an ONNX file that can leave without a trace.

    Args:
        path: the file; it is not changed.
        sizes: name of an input -> its shape, for inputs whose shapes the file leaves open.
        fold: whether constants other than 0 may be folded, as for ``compact``.
        select: whether channels may be selected in front of BatchNorms, as for ``compact``.
        round_to: of what the widths of layers are to be multiples, as for ``compact``.

    Raises:
        ModelError: the file can't be read, or followed.
        ConstantOutputError: its output is the same for every input.
        VerificationError: the small model computes something else. It is not returned.
        ConfigError: ``round_to`` is below 1.
    """
    check_round_to(round_to)
    original, files = read_model(path)
    with torch.no_grad():
        model, report = _Task(path, original, sizes or {}, fold=fold, select=select, round_to=round_to).run()
    _certify_(model, files, report.agreements)
    return OnnxResult(model, report, files)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, whole or not at all; weights of more than 2 GB go into a file beside it.

    Raises:
        WriteError: the file can't be written.
    """
    if model.ByteSize() < PROTOBUF_LIMIT:
        write_atomic(path, lambda temporary: temporary.write_bytes(model.SerializeToString()))
        return
    large = onnx.ModelProto()
    large.CopyFrom(model)
    beside = path.with_name(f"{path.name}.data")

    def save(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compress-") as folder:
            written = Path(folder) / path.name
            onnx.save_model(large, written, save_as_external_data=True, location=beside.name)
            (Path(folder) / beside.name).replace(beside)
            written.replace(temporary)

    write_atomic(path, save)


class _Task:
    """One file that is to be cut."""

    def __init__(
        self,
        path: Path,
        original: onnx.ModelProto,
        sizes: Mapping[str, Sequence[int]],
        *,
        fold: bool,
        select: Select,
        round_to: int,
    ):
        self.path, self.original, self.fold, self.round_to, self.watch = path, original, fold, round_to, Stopwatch()
        self.folded = fold_constants(original)
        with self.watch.stage("analysis"):
            self.network = OnnxNetwork(self.folded).eval()
            self.example = example_inputs(path, self.network, sizes)
            self._try()
            self.runs = other_runs(self.network, self.example)
            self.graph = analyse(self.network, self.example, self.runs, fold=fold, select=select)
        self.traces = Traces()
        self.moving = moving_numbers(self._watched())
        self.small = self.folded

    def _try(self) -> None:
        try:
            numbers_at(self.network, [tuple(x.shape) for x in self.example], self.example)
        except ModelError:
            raise
        except Exception as error:  # whatever torch raises on shapes that do not fit
            shapes = ", ".join(
                f"{v.name}: {tuple(x.shape)}" for v, x in zip(self.network.file.declared, self.example, strict=True)
            )
            raise ModelError(
                f"{self.path}: does not run with inputs of the shapes {shapes}: {first_line(error)}. "
                "Name the shapes that it takes with --input-size NAME=1x3x224x224."
            ) from error

    def _watched(self) -> list[Statics]:
        """The numbers of the file at a few sizes."""
        shapes = [tuple(x.shape) for x in self.example]
        found = [numbers_at(self.network, shapes, self.example)[0]]
        for other in other_sizes(self.example):
            with contextlib.suppress(Exception):  # sizes that the file does not take
                found.append(numbers_at(self.network, other, self.example)[0])
            if len(found) > SIZES_WATCHED:
                break
        return found

    def run(self) -> tuple[onnx.ModelProto, CompactReport]:
        """Cut and compare; on failure without folded constants."""
        for fold in (True, False) if self.fold else (False,):
            with self.watch.stage("cut"):
                cut = self._cut(fold=fold)
            with self.watch.stage("comparison"):
                try:
                    agreements = self._certify(cut)
                except VerificationError:
                    if fold and cut.decision.folds:
                        continue
                    raise
            return self._result(cut, agreements)
        raise AssertionError("without folds the loop returns")

    def _cut(self, *, fold: bool) -> Cut:
        self.small = self.folded
        return cut_graph(
            self.network, self.graph, self.example, self.watch, fold=fold, replace=False, pinned={},
            traces=self.traces, round_to=self.round_to, finish=self._write,
        )  # fmt: skip

    def _write(self, made: GraphCut, removed: Tensor) -> None:
        """Write the file, or tell which channels must stay for it."""
        if not bool(removed.any()):
            return
        try:
            self.small = Writer(self.folded, self.network, made, self.moving).write()
        except Unwritable as reason:
            held = _held(self.graph, reason.path) & removed
            if not bool(held.any()):
                raise ModelError(f"{self.path}: {reason.path}: {reason.reason}; this file can't be cut.") from None
            classes = held.nonzero().flatten()
            told = f"{reason.reason} (at {reason.path})"
            raise Blocked(Channels(classes, self.graph.classes), told) from None

    def _certify(self, cut: Cut) -> list[Agreement]:
        """Compare both files in ONNX Runtime; and as modules in float64, where the cut is made anew in that."""
        if not bool(cut.decision.removed.any()):
            return []
        _check(self.small, self.path)
        twin = None
        if any(p.dtype != torch.float64 for p in self.network.parameters() if p.is_floating_point()):
            double = double_copy(self.network)
            fold_(double, cut.decision)
            made = cut.plan.as_graph(double, in_double(self.example), Traces())  # the writer reads its types
            assert isinstance(double, OnnxNetwork)
            try:
                twin = OnnxNetwork(Writer(self.folded, double, made, self.moving).write()).eval()
            except Unwritable as reason:
                raise VerificationError(
                    f"{self.path}: {reason.path}: the small file can't be compared in double precision "
                    f"({reason.reason}); it is not written."
                ) from None
        original = Session(self.original, self.network)
        small = Session(self.small, self.network)
        return certify(original, small, twin, self.example, runs=self.runs)

    def _result(self, cut: Cut, agreements: list[Agreement]) -> tuple[onnx.ModelProto, CompactReport]:
        removed = bool(cut.decision.removed.any())
        model = onnx.ModelProto()
        model.CopyFrom(self.small if removed else self.original)
        seconds = self.watch.seconds()
        report = report_of(self.network, cut, agreements, seconds, form="onnx")
        notes = (
            *slow_widths(self.graph, report.layers),
            *_without_rules(self.graph),
            *(_frozen(self.original) if removed else ()),
        )
        return model, dataclasses.replace(report, rewritten=(), notes=notes)  # those of the report are of torch code


def _held(graph: ChannelGraph, path: str) -> Tensor:
    """Bool ``[classes]``: channels that an operation of the file holds."""
    found = torch.zeros(graph.classes.count, dtype=torch.bool)
    for operation in graph.operations:
        if operation.where == path:
            found[operation.classes] = True
            for source in operation.reads:
                found[graph.operations[source].classes] = True
    return found


def _without_rules(graph: ChannelGraph) -> tuple[str, ...]:
    """A line on the operations that the op table does not hold, if there are any."""
    names = (operation.name for operation in graph.operations if operation.name.startswith(f"{NAMESPACE}."))
    found = Counter(name.split(".")[1].removeprefix("onnx_") for name in names)
    told = ", ".join(f"{name} ({count})" for name, count in found.items())
    return (f"operations without a rule, whose channels stay: {told}",) if found else ()


def _frozen(model: onnx.ModelProto) -> tuple[str, ...]:
    """A line on the inputs whose default the file holds, if there are any: what is cut follows from these values."""
    stored = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name in stored]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    told = f"no inputs any more, but constants with the values that the file holds: {', '.join(names[:NAMED])}{more}"
    return (told,) if names else ()


def _check(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() >= PROTOBUF_LIMIT:
        return  # the checker takes no more; ONNX Runtime reads it
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"{path}: the small model is no valid ONNX; it is not written: {error}") from error


def _certify_(model: onnx.ModelProto, files: Sequence[Path], agreements: Sequence[Agreement]) -> None:
    """Add what the file tells about how it was made to its metadata, in place; figures and tables are JSON."""
    own = [a for a in agreements if a.dtype != "float64"]
    exact = [a.max_relative_error for a in agreements if a.dtype == "float64"]
    values = {
        "original_sha256": json.dumps({path.name: _sha256(path) for path in files}),
        "max_relative_error": repr(max((a.max_relative_error for a in own), default=0.0)),
        "max_abs_error": repr(max((a.max_abs_error for a in own), default=0.0)),
        "max_exact_error": repr(max(exact, default=0.0)),
        "input_shapes": json.dumps([a.input_shapes for a in own]),
        "versions": json.dumps({name: version(name) for name in ("edge-compress", "onnx", "onnxruntime", "torch")}),
    }
    for entry in [e for e in model.metadata_props if e.key.startswith(OWN)]:
        model.metadata_props.remove(entry)
    for name, value in values.items():
        model.metadata_props.add(key=f"{OWN}{name}", value=value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def example_inputs(path: Path, network: OnnxNetwork, sizes: Mapping[str, Sequence[int]]) -> tuple[Tensor, ...]:
    """An input of one sample for each input of the file.

    Sizes that the file leaves open: one sample, the channels that the first layer reads, ``DEFAULT_SIDE`` pixels.

    Raises:
        ModelError: a size is open that can't be guessed, or ``sizes`` names an input that there is not.
    """
    declared = {value.name: value for value in network.file.declared}
    if strange := sorted(set(sizes) - set(declared)):
        raise ModelError(f"{path}: has no input {', '.join(strange)}; its inputs: {', '.join(declared)}.")
    return tuple(
        torch.zeros(_shape(path, network, value, sizes.get(name)), dtype=input_dtype(value))
        for name, value in declared.items()
    )


def _shape(
    path: Path, network: OnnxNetwork, value: onnx.ValueInfoProto, given: Sequence[int] | None
) -> tuple[int, ...]:
    kind = value.type.tensor_type
    if given is not None:
        return tuple(given)
    if not kind.HasField("shape"):
        raise ModelError(
            f"{path}: the input {value.name} has no shape; name one: --input-size {value.name}=1x3x224x224."
        )
    found = []
    for i, dim in enumerate(kind.shape.dim):
        guess = 1 if i == 0 else DEFAULT_SIDE if i > 1 and len(kind.shape.dim) == 4 else None
        size = guess if (declared := fixed_size(dim)) is None else declared
        if i == 1 and size is None:
            size = network.channels_read(value.name)
        if not size:
            raise ModelError(
                f"{path}: dimension {i} of the input {value.name} is open; name a shape: "
                f"--input-size {value.name}=1x3x224x224."
            )
        found.append(size)
    return tuple(found)
