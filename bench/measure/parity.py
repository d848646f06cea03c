"""Whether a device computes what this machine computes, from the same inputs.

A figure of a wrong computation is worth nothing: kernels of another CPU, library version or execution provider are
checked before their speed is told.
"""

import base64
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.onnx_graph import Graph, read_graph
from bench.protocol import CPU_PROVIDER, Answer, Output, Request
from bench.report import Parity
from bench.targets import Session
from bench.targets.local import LocalTarget

# Allowed differences, as shares of an output's largest absolute value.
#
# float32: other orders of summation. ResNets differ by 1e-6 between x86 and ARM; a wrong kernel by 1e-1 and more.
# float16: products and sums are rounded to 11 bits (1e-3) where the CPU has half precision, to 24 where it has not.
# int8: a step of eight bits is 4e-3 of a tensor's range, and kernels may round to either neighbour, layer by layer. On
# x86 without VNNI two products of an activation and a weight are added in 16 bits, which saturate where weights have 8
# bits: that moves outputs by 1e-1 and is refused, since it is this machine that is wrong then.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": 5e-2}

HINTS = {"int8": "weights of 8 bits saturate on x86 without VNNI, compress export --int8 takes 7; "}

QUANTISED = ("QLinear", "DynamicQuantize", "QuantizeLinear", "QGemm", "QAttention", "MatMulNBits")
CODES = ("int8", "uint8", "int16", "uint16")  # whole numbers that stand for reals; others are exact: classes, indices


def arithmetic_of(path: Path) -> str:
    """The coarsest arithmetic that a model computes in: a key of `TOLERANCES`."""
    try:
        graph = read_graph(path)
    except BenchError:  # ONNX Runtime's own format: the strictest, and the message names --tolerance
        return "float32"
    if any(node.operator.startswith(QUANTISED) or node.operator.endswith("Integer") for node in graph.nodes):
        return "int8"
    return "float16" if _halves(graph) else "float32"


def _halves(graph: Graph) -> bool:
    return any(weight.shape and weight.tensor_bytes == 2 * prod(weight.shape) for weight in graph.weights.values())


def local_outputs(request: Request, limit_s: float) -> tuple[tuple[Output, ...], ...]:
    """What this machine computes for the models of a request, by ONNX Runtime's own CPU kernels.

    Raises:
        BenchError: A model does not run here.
    """
    plain = replace(request, measure="outputs", provider=CPU_PROVIDER, pin=(), limit_seconds=limit_s)
    try:
        return outputs_of(LocalTarget().run(plain))
    except BenchError as error:
        raise BenchError(f"on this machine, with which the outputs are compared: {error}") from error


def check_outputs(
    session: Session, device: str, requests: Sequence[Request], limit_s: float, tolerance: float | None
) -> None:
    """Refuse a device that computes something else than this machine; nothing is to be compared on this CPU itself.

    Answers about instructions hold the outputs of the very process that was measured, which their measure compares.

    Args:
        session: Of the device.
        device: As given with ``--device``.
        requests: Whose models, inputs and provider are taken.
        limit_s: For each of the two runs.
        tolerance: See `require_parity`.

    Raises:
        BenchError: They differ, or one of the two does not run.
    """
    first = requests[0]
    itself = device == "cpu" and first.provider.lower() in ("cpu", CPU_PROVIDER.lower())
    if itself or first.measure == "instructions":
        return
    models = tuple(dict.fromkeys(path for request in requests for path in request.models))
    asked = replace(first, measure="outputs", models=models, outputs=(), limit_seconds=limit_s)
    there, here = outputs_of(session.run(asked)), local_outputs(asked, limit_s)
    for path, ours, theirs in zip(models, here, there, strict=True):
        require_parity(Path(path), ours, theirs, device, tolerance)


def outputs_of(answer: Answer) -> tuple[tuple[Output, ...], ...]:
    """The outputs of each model of an answer.

    Raises:
        BenchError: The worker left them out.
    """
    found = tuple(model.outputs for model in answer.models if model.outputs is not None)
    if len(found) != len(answer.models):
        raise BenchError("worker's answer: outputs are missing; the worker is not the one of this bench")
    return found


def require_parity(
    path: Path, here: Sequence[Output], there: Sequence[Output], device: str, tolerance: float | None = None
) -> Parity:
    """The worst of a model's outputs, if all are near enough.

    Args:
        path: The model.
        here: Outputs on this machine.
        there: Outputs on the device.
        device: As given with ``--device``.
        tolerance: Allowed difference as a share of each output's largest value; by default that of the arithmetic.

    Raises:
        BenchError: They differ by more, or in number or shape.
    """
    arithmetic = arithmetic_of(path)
    allowed = TOLERANCES[arithmetic] if tolerance is None else tolerance
    described = [
        [(output.name, output.shape, output.dtype, output.stride) for output in side] for side in (here, there)
    ]
    if described[0] != described[1]:
        shown = [
            "; ".join(f"{output.name} {list(output.shape)} {output.dtype}" for output in side) for side in (here, there)
        ]
        raise BenchError(f"{path} has other outputs on {device} than on this machine: {shown[1]}, expected {shown[0]}")
    found = [_compared(ours, theirs, arithmetic, allowed) for ours, theirs in zip(here, there, strict=True)]
    worst = max(found, key=lambda parity: (not within(parity), parity.max_abs_error))
    if not within(worst):
        raise BenchError(
            f"{path} computes something else on {device} than on this machine: output {worst.output} differs by "
            f"{worst.max_abs_error:.4g} at most, allowed {worst.tolerance * worst.largest_value:.4g} "
            f"({worst.tolerance:g} of the largest value, {worst.largest_value:.4g}; it computes in {arithmetic}); "
            f"{HINTS.get(arithmetic, '')}if such a difference is all right, allow it with --tolerance"
        )
    return worst


def within(parity: Parity) -> bool:
    """Whether the difference is allowed."""
    return parity.max_abs_error <= parity.tolerance * parity.largest_value


def _compared(ours: Output, theirs: Output, arithmetic: str, allowed: float) -> Parity:
    here, there = _values(ours), _values(theirs)
    with np.errstate(invalid="ignore"):  # inf - inf
        error = np.abs(here - there)
    # Equal infinities and two NaN are no difference; a NaN on one side alone is an infinite one.
    error[(here == there) | (np.isnan(here) & np.isnan(there))] = 0
    error[np.isnan(error)] = np.inf
    finite = np.abs(here[np.isfinite(here)])
    exact = np.dtype(ours.dtype).kind in "iub" and ours.dtype not in CODES
    return Parity(
        output=ours.name,
        arithmetic=arithmetic,
        max_abs_error=float(error.max(initial=0)),
        largest_value=float(finite.max(initial=0)),
        tolerance=0.0 if exact else allowed,
    )


def _values(output: Output) -> npt.NDArray[np.float64]:
    data = np.frombuffer(base64.b64decode(output.values), np.dtype(output.dtype).newbyteorder("<"))
    expected = -(-prod(output.shape) // output.stride)
    if data.size != expected:
        raise BenchError(f"worker's answer: output {output.name} has {data.size} values, expected {expected}")
    return data.astype(np.float64)
