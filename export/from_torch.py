"""From a torch module to an ONNX graph that is proved to compute the same.

    torch.export -> torch's ONNX exporter -> our passes -> onnxsim -> file; after each: checker, parity

Nothing reaches the disk before the last step, so that no failure leaves a file or touches an older one.

(This module is not called `to_onnx`: a module of the function's name would take the function's place in the package.)
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export import metadata as model_metadata
from export import opset as opsets
from export import passes
from export.errors import ExportError
from export.files import require_writable
from export.proof import EXPORTED, Cases, Graph, compared, count, optimised, precision_of, simplified
from export.report import NO_METADATA, ExportReport, write
from export.verify import (
    DYNAMIC_BATCH_SIZES,
    IMAGE_DIMENSIONS,
    RELATIVE_TOLERANCE,
    Case,
    Inputs,
    at_other_sizes,
    random_batches,
    reference_cases,
)

# A protobuf message, hence an ONNX file with its weights inside, cannot exceed 2 GiB.
MAX_FILE_BYTES = 2**31 - 1

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class Interface:
    """What the graph takes and gives.

    Attributes:
        opset: 18 to 23, 18 by default; see `export.opset` for the first ONNX Runtime that reads each.
        dynamic_batch: Let dimension 0 of all inputs vary together; verified with batches of 1, 2 and 5.
        dynamic_size: Let height and width (dimensions 2 and 3) of all images vary, from those of the example on;
            verified at three sizes.
        input_names: "input" by default, or "input_0", "input_1", ...; torch's own names depend on the layers.
        output_names: "output" by default, or "output_0", ..., in the order in which nested results are flattened.
    """

    opset: int | None = None
    dynamic_batch: bool = False
    dynamic_size: bool = False
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None


def to_onnx(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    simplify: bool = True,
    metadata: Mapping[str, str] = NO_METADATA,
    extra_inputs: Sequence[Sequence[Tensor]] = (),
    tolerance: float = RELATIVE_TOLERANCE,
) -> ExportReport:
    """Export `model` as it computes in eval mode, verify the result in ONNX Runtime, and write it.

    The default opset is 18: the one that torch's exporter is written in, which holds every operator of a vision network
    and which every ONNX Runtime from 1.14 on reads; the IR version is lowered to match. Weights stay inside the file.
    A JSON document with the verification lies beside it (`export.report`).

    Args:
        model: Any module; it is in eval mode meanwhile, and gets the mode of each of its parts back, on errors too.
        example_inputs: One tensor for each argument of `forward`; images are [N, C, H, W].
        path: Where the file goes. Its folder must exist. An older file is replaced at the end, or kept on any failure.
        opset: See `Interface`, as the next four.
        dynamic_batch: Let the number of images vary.
        dynamic_size: Let height and width vary.
        input_names: Of the graph.
        output_names: Of the graph.
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
    model_metadata.require_valid(metadata)
    interface = Interface(opset, dynamic_batch, dynamic_size, input_names, output_names)
    graph = graph_of(
        model, example_inputs, interface, simplify=simplify, extra_inputs=extra_inputs, tolerance=tolerance
    )
    return write(graph, path, metadata=metadata)


def graph_of(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    interface: Interface,
    *,
    simplify: bool = True,
    extra_inputs: Sequence[Sequence[Tensor]] = (),
    tolerance: float = RELATIVE_TOLERANCE,
) -> Graph:
    """What `to_onnx` writes, in memory: to be quantised, or written by `export.write`.

    Raises:
        ExportError: See `to_onnx`.
    """
    opset = opsets.resolve(interface.opset)
    example = _checked_inputs(tuple(example_inputs), interface)
    real_batches = [_checked_like(tuple(inputs), example, interface) for inputs in extra_inputs]
    _require_fits(model)
    with _evaluation_mode(model):
        sizes = DYNAMIC_BATCH_SIZES if interface.dynamic_batch else None
        random = reference_cases(model, random_batches(example, sizes), tolerance=tolerance)
        if interface.dynamic_size:
            random += _cases_of_other_sizes(model, example, sizes, tolerance)
        cases = Cases(random, reference_cases(model, real_batches, tolerance=tolerance), tolerance)
        input_names = _names(interface.input_names, len(example), "input")
        output_names = _names(interface.output_names, len(cases.random[0].expected), "output")
        if shared := set(input_names) & set(output_names):
            raise ExportError(f"inputs and outputs need different names, got {sorted(shared)} for both")
        exported = _export(model, example, opset, input_names, output_names, interface)
    raw = Graph(
        model=exported,
        opset=opset,
        cases=cases,
        steps=(compared(EXPORTED, exported, cases, tolerance),),
        precision=precision_of(exported),
        nodes_before=len(exported.graph.node),
        batch_norms_before=sum(isinstance(module, _BATCH_NORMS) for module in model.modules()),
    )
    written = simplified(optimised(raw), wanted=simplify)
    left = count(written.model, "BatchNormalization")
    return written.noting(*([f"{left} of {raw.batch_norms_before} BatchNorm stay nodes of their own"] if left else []))


def _cases_of_other_sizes(
    model: nn.Module, example: Inputs, batch_sizes: Sequence[int] | None, tolerance: float
) -> list[Case]:
    _, *others = at_other_sizes(example)
    batches = [batch for one in others for batch in random_batches(one, batch_sizes)]
    try:
        return reference_cases(model, batches, tolerance=tolerance)
    except ExportError as error:
        shapes = [tuple(x.shape) for x in example]
        raise ExportError(
            f"a dynamic size cannot be had: {error}. The network runs on inputs of shape {shapes}; where it takes no "
            "other size, export it without --dynamic-size"
        ) from error


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:  # each for itself: beside one that came out of torch.export, others must follow
            with suppress(NotImplementedError):  # it computes as it was traced
                module.eval()
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
    interface: Interface,
) -> onnx.ModelProto:
    dimensions: dict[int, torch.export.Dim] = {}
    if interface.dynamic_batch:
        # torch.export takes a size of 1 for a constant: trace with two copies of the batch.
        example = tuple(torch.cat((x, x)) for x in example)
        dimensions[0] = torch.export.Dim("batch", min=1)
    if interface.dynamic_size:
        rows, columns = next(x.shape[2:] for x in example if x.ndim == IMAGE_DIMENSIONS)
        # From the example's size on: below a smallest size, that of the largest kernel, no network works.
        dimensions |= {2: torch.export.Dim("height", min=rows), 3: torch.export.Dim("width", min=columns)}
    varying = tuple(
        {d: name for d, name in dimensions.items() if d == 0 or x.ndim == IMAGE_DIMENSIONS} for x in example
    )
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
                dynamic_shapes=varying if dimensions else None,
            )
    except Exception as error:
        asked = ("a dynamic batch", interface.dynamic_batch), ("a dynamic size", interface.dynamic_size)
        how = "".join(f" with {what}" for what, wanted in asked if wanted)
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
    _name_outputs_(exported.graph, output_names)
    passes.run(passes.REPAIRS, exported)
    exported.ir_version = onnx.helper.find_min_ir_version_for(list(exported.opset_import))
    return exported


def _name_outputs_(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Give every output its name, in place: a tensor that is returned twice has one name in torch's exporter."""
    for value, name in zip(graph.output, names, strict=True):
        if value.name != name:
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
            value.name = name


def _checked_inputs(inputs: Inputs, interface: Interface) -> Inputs:
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = [type(x).__name__ for x in inputs]
        raise ExportError(f"example_inputs must hold one tensor for each argument of forward, got {kinds}")
    if empty := [tuple(x.shape) for x in inputs if x.numel() == 0]:
        raise ExportError(f"example_inputs must not be empty, got the shapes {empty}")
    unknown = [str(x.dtype) for x in inputs if x.is_complex() or x.dtype == torch.bfloat16]
    if unknown:
        raise ExportError(f"inputs of type {unknown} cannot be verified in ONNX Runtime; use float32")
    shapes = [tuple(x.shape) for x in inputs]
    if interface.dynamic_batch and (not all(shapes) or len({shape[0] for shape in shapes}) != 1):
        raise ExportError(f"a dynamic batch needs inputs that share dimension 0, got the shapes {shapes}")
    if interface.dynamic_size and not any(x.ndim == IMAGE_DIMENSIONS for x in inputs):
        raise ExportError(f"a dynamic size needs an input of images, [N, C, H, W]; got the shapes {shapes}")
    return inputs


def _checked_like(inputs: Inputs, example: Inputs, interface: Interface) -> Inputs:
    """Real inputs moved to the example's device, if they are like it in number, type and shape."""
    free = {0} if interface.dynamic_batch else set()

    def likeness(tensors: Inputs) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        return [
            (x.dtype, tuple(size for d, size in enumerate(x.shape) if d not in free and not _sized(x, d)))
            for x in tensors
        ]

    def _sized(x: Tensor, dimension: int) -> bool:
        return interface.dynamic_size and x.ndim == IMAGE_DIMENSIONS and dimension > 1

    expected, got = likeness(example), likeness(inputs)
    if got != expected:
        left_out = [what for what, dynamic in (("batch", free), ("size", interface.dynamic_size)) if dynamic]
        which = f"shapes without the {' and '.join(left_out)}" if left_out else "shapes"
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


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost error: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
