"""A graph in memory together with its proof: what it was compared with, and how far it agreed at each step.

Every step (torch's export, simplification, quantisation) makes a candidate, which `compared` lets through the checker
and runs in ONNX Runtime on every case. What fails there goes no further.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace

import onnx

from export import passes
from export.errors import ExportError
from export.protos import inputs_of
from export.simplify import simplify
from export.verify import Case, Parity, verify

FLOAT32, FLOAT16, INT8, INT8_WEIGHTS = "float32", "float16", "int8", "int8 weights"
"""What the weights of a graph are."""

INTEGER_OPS = frozenset(("QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"))
HALF = frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))

EXPORTED = "exported"
READ = "read"
OPTIMISED = "optimised"
SIMPLIFIED = "simplified"


@dataclass(frozen=True, slots=True)
class Cases:
    """What every candidate is held against.

    Attributes:
        random: Random batches and the reference's outputs.
        real: Real inputs and the reference's outputs; may be empty.
        tolerance: Bound on the largest relative difference, where nothing may be lost.
        reference: What gave the outputs, in messages.
    """

    random: list[Case]
    real: list[Case]
    tolerance: float
    reference: str = "the torch model"


@dataclass(frozen=True, slots=True)
class Step:
    """How far one graph agrees with the reference: the torch model, or the ONNX file that was given.

    Attributes:
        name: ``exported``, ``read``, ``simplified``, ``int8`` and so on.
        random: On random batches.
        real: On real inputs; None where there were none.
    """

    name: str
    random: Parity
    real: Parity | None


def figures(step: Step) -> dict[str, object]:
    """A step as JSON has it: null is a difference relative to outputs that are all zero, which is infinite."""
    return asdict(step, dict_factory=lambda pairs: {key: None if value == math.inf else value for key, value in pairs})


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that passed the checker and was compared with the reference at every step up to it.

    Attributes:
        model: Weights inside.
        opset: Of the default domain.
        cases: What it was compared on.
        steps: In their order; the last one is this graph.
        precision: ``float32``, ``float16``, ``int8`` or ``int8 weights``.
        nodes_before: Of the graph as it was exported or read.
        batch_norms_before: BatchNorm modules of the torch model, or nodes of the file that was read.
        notes: What the reader has to know.
    """

    model: onnx.ModelProto
    opset: int
    cases: Cases
    steps: tuple[Step, ...]
    precision: str
    nodes_before: int
    batch_norms_before: int
    notes: tuple[str, ...] = ()

    @property
    def simplified(self) -> bool:
        """Whether onnxsim's graph was taken."""
        return any(step.name == SIMPLIFIED for step in self.steps)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each input, the first that it was verified with: one image where the batch is open."""
        return dict(zip(_interface(self.model)[0], (x.shape for x in self.cases.random[0].inputs), strict=True))

    @property
    def of_torch(self) -> bool:
        """Whether torch's exporter made it; a file was read otherwise."""
        return self.steps[0].name == EXPORTED

    @property
    def lossless(self) -> bool:
        """Whether it is held to the tolerance: its weights are those of the reference."""
        return self.precision == FLOAT32

    def then(
        self, name: str, model: onnx.ModelProto, *, tolerance: float | None = None, precision: str | None = None
    ) -> "Graph":
        """This graph after one more step, checked and compared.

        Args:
            name: Of the step.
            model: Its result.
            tolerance: On the relative difference; that of the cases by default.
            precision: What the weights have become, where they have changed.

        Raises:
            ExportError: The checker refuses it, it has other inputs or outputs, or it does not agree.
        """
        for what, before, after in zip(("inputs", "outputs"), _interface(self.model), _interface(model), strict=True):
            if before != after:
                raise ExportError(f"the {name} graph has other {what}: {before} became {after}")
        step = compared(name, model, self.cases, self.cases.tolerance if tolerance is None else tolerance)
        return replace(self, model=model, steps=(*self.steps, step), precision=precision or self.precision)

    def noting(self, *notes: str) -> "Graph":
        """This graph with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs."""
    return [value.name for value in inputs_of(model)], [value.name for value in model.graph.output]


def compared(name: str, model: onnx.ModelProto | bytes, cases: Cases, tolerance: float) -> Step:
    """Let a graph through the checker and run it on every case; the bytes of a file in ONNX Runtime's format just run.

    Raises:
        ExportError: The checker refuses it, ONNX Runtime cannot run it, or it does not agree.
    """
    what = f"the {name} graph"
    # The checker's and protobuf's errors have no common base class but Exception.
    try:
        if not isinstance(model, bytes):
            # onnx cannot infer shapes behind sparse initializers (seen in 1.23.2); they were inferred before.
            onnx.checker.check_model(model, full_check=not model.graph.sparse_initializer)
    except Exception as error:
        raise ExportError(f"{what} is refused by the ONNX checker: {error}") from error

    def held_against(some: list[Case], which: str) -> Parity:
        return verify(model, some, tolerance=tolerance, what=f"{what} on {which}", reference=cases.reference)

    random = held_against(cases.random, "random batches")
    return Step(name, random, held_against(cases.real, "real inputs") if cases.real else None)


def optimised(graph: Graph) -> Graph:
    """The graph after our passes; without them, and with a note that says why, where that is not as good."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    try:
        return graph.then(OPTIMISED, model) if passes.run(passes.PASSES, model) else graph
    except ExportError as error:
        return graph.noting(f"passes left out: {error}")


def simplified(graph: Graph, *, wanted: bool) -> Graph:
    """The graph that onnxsim makes of it if that is as good; else the graph itself, with a note that says why."""
    if not wanted:
        return graph.noting("not simplified: switched off")
    try:
        return graph.then(SIMPLIFIED, simplify(graph.model))
    except ExportError as error:
        return graph.noting(f"not simplified: {error}")


def precision_of(model: onnx.ModelProto) -> str:
    """What the weights of a file are already, in the words of `Graph`."""
    ops = {node.op_type for node in model.graph.node}
    if ops & INTEGER_OPS or any(op.startswith("QLinear") for op in ops):
        return INT8
    if "DequantizeLinear" in ops:
        return INT8_WEIGHTS
    given = [attribute.t for node in model.graph.node for attribute in node.attribute if node.op_type == "Constant"]
    kinds = {tensor.data_type for tensor in (*model.graph.initializer, *given)}
    return FLOAT16 if kinds & HALF else FLOAT32


def count(model: onnx.ModelProto, op_type: str) -> int:
    """How many nodes of a kind the graph has."""
    return Counter(node.op_type for node in model.graph.node)[op_type]
