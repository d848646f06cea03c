"""From a torch module to an ONNX file that is proved to compute the same.

    torch.export -> torch's ONNX exporter -> our passes -> checker -> parity -> onnxsim -> checker -> parity -> file

Nothing reaches the disk before the last step, so that no failure leaves a file or touches an older one.

(This module is not called `to_onnx`: a module of the function's name would take the function's place in the package.)
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
import torch
from torch import Tensor, nn

from export import metadata as model_metadata
from export import opset as opsets
from export import passes
from export.errors import ExportError
from export.files import require_writable, write_whole
from export.simplify import simplify as run_onnxsim
from export.verify import (
    DYNAMIC_BATCH_SIZES,
    RELATIVE_TOLERANCE,
    Case,
    Inputs,
    Parity,
    random_batches,
    reference_cases,
    verify,
)

# A protobuf message, hence an ONNX file with its weights inside, cannot exceed 2 GiB.
MAX_FILE_BYTES = 2**31 - 1

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how far it agrees with the torch model."""

    path: Path
    file_bytes: int
    opset: int
    min_onnxruntime: str  # the first release that reads the file
    simplified: bool  # False: the file holds the graph as torch exported it, and `notes` says why
    nodes_exported: int  # by torch's exporter, whose own optimiser already folds BatchNorm and constants
    nodes_written: int
    batch_norm_modules: int  # in the torch model
    batch_norm_nodes: int  # left in the file; the others were folded into the convolution before them
    random: Parity  # of the written graph, on random batches
    real: Parity | None  # of the written graph, on `extra_inputs`; None when there were none
    metadata: Mapping[str, str]  # as stored in the file
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Cases:
    """What every candidate graph is held against."""

    random: list[Case]
    real: list[Case]
    tolerance: float


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A graph that passed the checker and agrees with torch."""

    model: onnx.ModelProto
    random: Parity
    real: Parity | None


def to_onnx(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    simplify: bool = True,
    metadata: Mapping[str, str] = _NO_METADATA,
    extra_inputs: Sequence[Sequence[Tensor]] = (),
    tolerance: float = RELATIVE_TOLERANCE,
) -> ExportReport:
    """Export `model` as it computes in eval mode, verify the result in ONNX Runtime, and write it.

    The default opset is 18: the one that torch's exporter is written in, which holds every operator of a vision network
    and which every ONNX Runtime from 1.14 on reads; the IR version is lowered to match. Weights stay inside the file.

    Args:
        model: Any module; it is in eval mode meanwhile, and gets the mode of each of its parts back, on errors too.
        example_inputs: One tensor for each argument of `forward`; images are [N, C, H, W].
        path: Where the file goes. Its folder must exist. An older file is replaced at the end, or kept on any failure.
        opset: 18 to 23; see `export.opset` for the first ONNX Runtime that reads each.
        dynamic_batch: Let dimension 0 of all inputs vary together; verified with batches of 1, 2 and 5.
        input_names: "input" by default, or "input_0", "input_1", ...; torch's own names depend on the layers.
        output_names: "output" by default, or "output_0", ..., in the order in which nested results are flattened.
        simplify: Run onnxsim. When it fails or its graph does not agree with torch, torch's own graph is written and
            the report's notes say why.
        metadata: Text to text, stored in the file beside the measured figures and the tools' versions.
        extra_inputs: Real inputs to verify on, each like `example_inputs` (any batch size if that is dynamic).
        tolerance: Bound on the largest difference relative to the largest output (`export.verify`).

    Returns:
        What was written and how far it agrees.

    Raises:
        ExportError: Bad arguments or an unwritable path (before any long work), a model that cannot be traced or
            verified, an output that is not finite, a difference above the tolerance, a full disk.
    """
    path = Path(path)
    require_writable(path)
    opset = opsets.resolve(opset)
    model_metadata.require_valid(metadata)
    example = _checked_inputs(tuple(example_inputs), dynamic_batch=dynamic_batch)
    real_batches = [_checked_like(tuple(inputs), example, dynamic_batch=dynamic_batch) for inputs in extra_inputs]
    _require_fits(model)

    with _evaluation_mode(model):
        batches = random_batches(example, DYNAMIC_BATCH_SIZES if dynamic_batch else None)
        cases = _Cases(
            reference_cases(model, batches, tolerance=tolerance),
            reference_cases(model, real_batches, tolerance=tolerance),
            tolerance,
        )
        input_names = _names(input_names, len(example), "input")
        output_names = _names(output_names, len(cases.random[0].expected), "output")
        exported = _export(model, example, opset, input_names, output_names, dynamic_batch=dynamic_batch)

    raw = _verified(exported, cases, "the exported graph")
    written, notes = _simplified(raw, cases) if simplify else (raw, ["not simplified: switched off"])
    simplified = written is not raw
    modules = sum(isinstance(module, _BATCH_NORMS) for module in model.modules())
    left = _count(written.model, "BatchNormalization")
    if left:
        notes.append(f"{left} of {modules} BatchNorm stay nodes of their own")
    entries = {
        **model_metadata.provenance(written.random, written.real, opset, simplified=simplified),
        **metadata,
    }
    model_metadata.embed(written.model, entries)
    content = written.model.SerializeToString()
    write_whole(path, content)
    return ExportReport(
        path=path,
        file_bytes=len(content),
        opset=opset,
        min_onnxruntime=opsets.FIRST_ONNXRUNTIME[opset],
        simplified=simplified,
        nodes_exported=len(raw.model.graph.node),
        nodes_written=len(written.model.graph.node),
        batch_norm_modules=modules,
        batch_norm_nodes=left,
        random=written.random,
        real=written.real,
        metadata=MappingProxyType(entries),
        notes=tuple(notes),
    )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        with suppress(NotImplementedError):  # modules that came out of torch.export compute as they were traced
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _export(
    model: nn.Module,
    example: Inputs,
    opset: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    dynamic_batch: bool,
) -> onnx.ModelProto:
    dynamic_shapes = None
    if dynamic_batch:
        # torch.export takes a size of 1 for a constant: trace with two copies of the batch.
        example = tuple(torch.cat((x, x)) for x in example)
        batch = torch.export.Dim("batch", min=1)
        dynamic_shapes = tuple({0: batch} for _ in example)
    # The exporter runs the caller's code and raises half a dozen unrelated types; all mean: this model, not exported.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own internals; what matters is verified
            program = torch.onnx.export(
                model,
                example,
                dynamo=True,
                verbose=False,
                optimize=True,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
            )
    except Exception as error:
        how = " with a dynamic batch" if dynamic_batch else ""
        raise ExportError(
            f"torch.export cannot trace {type(model).__name__}{how}: {_root_cause(error)}; "
            "does forward branch on values, or hard-code a size?"
        ) from error
    if program is None:
        raise ExportError(f"torch.onnx.export returned nothing for {type(model).__name__}")
    exported = program.model_proto
    got = next(entry.version for entry in exported.opset_import if entry.domain in ("", "ai.onnx"))
    if got != opset:
        raise ExportError(f"torch wrote opset {got} where {opset} was asked for")
    model_metadata.strip_traces(exported)
    passes.run_all(exported)
    exported.ir_version = onnx.helper.find_min_ir_version_for(list(exported.opset_import))
    return exported


def _verified(model: onnx.ModelProto, cases: _Cases, what: str) -> _Candidate:
    # The checker's and protobuf's errors have no common base class but Exception.
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(f"{what} is refused by the ONNX checker: {error}") from error
    return _Candidate(
        model,
        verify(model, cases.random, tolerance=cases.tolerance, what=f"{what} on random batches"),
        verify(model, cases.real, tolerance=cases.tolerance, what=f"{what} on real inputs") if cases.real else None,
    )


def _simplified(raw: _Candidate, cases: _Cases) -> tuple[_Candidate, list[str]]:
    """The simplified graph if it is as good as the exported one; else that one itself, and the reason."""
    try:
        return _verified(run_onnxsim(raw.model), cases, "the simplified graph"), []
    except ExportError as error:
        return raw, [f"not simplified: {error}"]


def _checked_inputs(inputs: Inputs, *, dynamic_batch: bool) -> Inputs:
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = [type(x).__name__ for x in inputs]
        raise ExportError(f"example_inputs must hold one tensor for each argument of forward, got {kinds}")
    if empty := [tuple(x.shape) for x in inputs if x.numel() == 0]:
        raise ExportError(f"example_inputs must not be empty, got the shapes {empty}")
    unknown = [str(x.dtype) for x in inputs if x.is_complex() or x.dtype == torch.bfloat16]
    if unknown:
        raise ExportError(f"inputs of type {unknown} cannot be verified in ONNX Runtime; use float32")
    shapes = [tuple(x.shape) for x in inputs]
    if dynamic_batch and (not all(shapes) or len({shape[0] for shape in shapes}) != 1):
        raise ExportError(f"a dynamic batch needs inputs that share dimension 0, got the shapes {shapes}")
    return inputs


def _checked_like(inputs: Inputs, example: Inputs, *, dynamic_batch: bool) -> Inputs:
    """Real inputs moved to the example's device, if they are like it in number, type and shape."""
    first = 1 if dynamic_batch else 0
    expected = [(x.dtype, tuple(x.shape[first:])) for x in example]
    got = [(x.dtype, tuple(x.shape[first:])) for x in inputs]
    if got != expected:
        which = "shapes without the batch" if dynamic_batch else "shapes"
        raise ExportError(f"extra_inputs must be like example_inputs: types and {which} {expected}, got {got}")
    return tuple(x.to(like.device) for x, like in zip(inputs, example, strict=True))


def _require_fits(model: nn.Module) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > MAX_FILE_BYTES:
        raise ExportError(f"{type(model).__name__} holds {size} bytes of weights; an ONNX file holds {MAX_FILE_BYTES}")


def _names(names: Sequence[str] | None, count: int, stem: str) -> list[str]:
    if names is None:
        return [stem] if count == 1 else [f"{stem}_{index}" for index in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise ExportError(f"{stem}_names must be {count} different names, got {list(names)}")
    return list(names)


def _count(model: onnx.ModelProto, op_type: str) -> int:
    return Counter(node.op_type for node in model.graph.node)[op_type]


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost error: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
