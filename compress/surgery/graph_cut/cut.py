"""From a network and a decision to a cut graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from compress.errors import ModelError
from compress.graph.aten.labels import LabelFlow
from compress.graph.aten.trace import CHECKS, base_name
from compress.graph.field import Field
from compress.graph.labels import Classes
from compress.surgery.graph_cut.batch import Static
from compress.surgery.graph_cut.cutter import Cutter, Result, Value
from compress.surgery.graph_cut.elementwise import whole
from compress.surgery.graph_cut.outcome import Rewrite
from compress.surgery.graph_cut.rules import ALWAYS, WHERE_CUT
from compress.surgery.graph_cut.source import source_line
from compress.surgery.graph_cut.state import Slices
from compress.surgery.graph_cut.tracing import Traced, Traces
from compress.surgery.kept import Kept


@dataclass(frozen=True)
class GraphCut:
    """A cut network as a graph.

    Attributes:
        module: the network, in evaluation mode.
        slices: state name -> what stays of the tensor of that name.
        rewrites: the operations that had to change, in the order of the computation.
        fixed_batch: the one batch size that it takes; ``None`` for any.
        fixed_sizes: lines of code whose heights, widths or numbers of tokens stay those of the traced input.
        dropped: state names of the original that nothing reads in the cut network.
        notes: what else a reader of the report must know.
        traced: the graph that it was written from, and ``written`` what stands in ``module`` for a node of that.
    """

    module: fx.GraphModule
    slices: Mapping[str, Slices]
    rewrites: tuple[Rewrite, ...]
    fixed_batch: int | None
    fixed_sizes: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    traced: Traced
    written: Mapping[fx.Node, fx.Node]

    def weights_of(self, model: nn.Module) -> dict[str, Tensor]:
        """The state that ``module`` would have if it had been cut from ``model``, in the precision of ``model``.

        Args:
            model: a network of the original shapes.
        """
        state = model.state_dict()
        return {
            n: self.slices[n].cut(state[n]) if n in self.slices else state[n].clone() for n in self.module.state_dict()
        }

    def lines(self, classes: Classes, some: Tensor) -> list[str]:
        """The rewritten operations that ``some`` (bool) of the ``classes`` pass, each line of code once."""
        passed = [rewrite for rewrite in self.rewrites if bool((rewrite.channels.among(classes) & some).any())]
        return list(dict.fromkeys(map(str, passed)))


def graph_module(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    kept: Mapping[str, Kept],
    *,
    select: Collection[str] = (),
    traces: Traces | None = None,
) -> GraphCut:
    """Cut a network as a plan says, as a graph. The weights of ``model`` are cut as they are; it is not changed.

    The graph follows from the code of ``model``, the sizes of its inputs and the plan alone: from any instance of the
    class, it is rebuilt for weights of the compact network.

    Args:
        model: the plain network of the original shapes: folds applied, new biases present.
        example_inputs: one tensor for each argument of ``forward``; their values do not matter.
        kept: what stays of each parameter that is cut: the ``parameters`` of a plan.
        select: running means of the BatchNorms in front of which channels are selected.
        traces: those of other copies of this network, if there are any.

    Raises:
        Blocked: some of these channels cannot leave the graph.
        ModelError: the network cannot be traced, or is not the one that was decided on.
    """
    traces = traces or Traces()
    traced = traces.of(model, example_inputs)
    try:
        return _cut_as_planned(model, traced, kept, select)
    except Static as reason:
        fixed = traces.of(model, example_inputs, fixed=str(reason))
        return _cut_as_planned(model, fixed, kept, select)


def _cut_as_planned(model: nn.Module, traced: Traced, kept: Mapping[str, Kept], select: Collection[str]) -> GraphCut:
    with torch.no_grad():
        flow = LabelFlow(traced.trace, frozenset(select))
        flow.run()
    classes = flow.book.solve()
    return cut_graph(model, traced, flow, classes, removed_by(kept, classes))


def removed_by(kept: Mapping[str, Kept], classes: Classes) -> Tensor:
    """Bool ``[classes]``: what a plan removes.

    Raises:
        ModelError: it removes a class in one parameter and keeps it in another, or cuts what has no channels.
    """
    removed, stays = (torch.zeros(classes.count, dtype=torch.bool) for _ in range(2))
    for name, dims in classes.parameters.items():
        for dim, along in dims.items():
            rows = kept[name].indices.get(dim) if name in kept else None
            mask = torch.full(along.shape, rows is None)
            mask[rows or []] = True
            removed[along[~mask]] = True
            stays[along[mask]] = True
    strange = [name for name, k in kept.items() if k.indices.keys() - classes.parameters.get(name, {}).keys()]
    torn = (removed & stays).nonzero().flatten()
    strange += [
        n for n, dims in classes.parameters.items() if any(bool(torch.isin(a, torn).any()) for a in dims.values())
    ]
    if strange:
        raise ModelError(f"the plan was made for another network: it cuts {strange[0]} otherwise than its channels go.")
    return removed


def cut_graph(model: nn.Module, traced: Traced, flow: LabelFlow, classes: Classes, removed: Tensor) -> GraphCut:
    """Write the cut graph of a network whose labels are known.

    Args:
        model: the network.
        traced: its trace, the one that ``flow`` walked.
        flow: its labels.
        classes: the solved ones.
        removed: bool ``[classes]``.

    Raises:
        Blocked: some classes cannot leave.
        Static: the graph cannot be written for any batch size: trace with a fixed one.
        ModelError: an operation that a graph cannot hold.
    """
    cutter = Cutter(model, flow, classes, removed, traced.batch)
    for node in traced.trace.graph.nodes:
        _write(cutter, node, traced)
    module = fx.GraphModule(cutter.state.root, cutter.graph, type(model).__name__)
    module.graph.eliminate_dead_code()
    module = fx.GraphModule(module, module.graph, type(model).__name__).eval()
    left = module.state_dict().keys()
    dropped = tuple(name for name in model.state_dict() if name not in left)
    slices = {name: slices for name, (slices, _) in cutter.state.cuts.items()}
    return GraphCut(
        module,
        slices,
        tuple(cutter.rewrites),
        traced.fixed_batch,
        _fixed_sizes(cutter, module),
        dropped,
        (EVALUATION, *traced.notes, *cutter.notes),
        traced,
        {node: result.node for node, result in cutter.env.items() if isinstance(result, Value)},
    )


def _fixed_sizes(cutter: Cutter, module: fx.GraphModule) -> tuple[str, ...]:
    """Lines whose operations still hold the size of a dimension along which no channels lie."""
    left, lines = {node.name for node in module.graph.nodes}, []
    for node, result in cutter.env.items():
        field = cutter.flow.env.get(node)
        if (
            base_name(node) in SIZED
            and isinstance(result, Value)
            and isinstance(field, Field)
            and result.node.name in left
        ):
            sizes = {size for size, stored in zip(field.shape, field.data.shape, strict=True) if stored == 1 < size}
            if any(type(number) is int and number in sizes for number in tree_leaves(result.node.args[1:])):
                lines.append(source_line(node))
    return tuple(dict.fromkeys(lines))


EVALUATION = (
    "the graph is that of evaluation mode; in training dropout drops and BatchNorm uses the batch, "
    "but what else forward does in training only (stochastic depth, auxiliary outputs) is not there"
)
"""What a reader must know of every graph."""

_SIZED = "view reshape _unsafe_view unflatten expand zeros ones full new_zeros new_ones new_full upsample_nearest1d "
_SIZED += "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d"
SIZED = frozenset(_SIZED.split())
"""Operations whose arguments are the sizes of their result."""


def _write(cutter: Cutter, node: fx.Node, traced: Traced) -> None:
    if node.op == "placeholder":
        if node.name in traced.trace.inputs:
            cutter.add_input(node)
    elif node.op == "output":
        results = [cutter.returned(node, result) for result in tree_leaves(node.args[0], is_leaf=lambda r: r is None)]
        cutter.graph.output(tree_unflatten(results, traced.outputs))
    elif node.op != "call_function":
        raise ModelError(f"{source_line(node)}: control flow ({node.target}) cannot be returned as a graph.")
    elif not base_name(node).startswith(CHECKS):
        cutter.env[node] = _rewritten(cutter, node)


def _rewritten(cutter: Cutter, node: fx.Node) -> Result:
    layouts, name = cutter.layout(node), base_name(node)
    if layouts is None or (isinstance(layouts, tuple) and not any(layouts)):
        return layouts
    try:
        if name in ALWAYS:
            return ALWAYS[name](cutter, node)
        return cutter.as_it_is(node) if cutter.is_whole(node) else WHERE_CUT.get(name, whole)(cutter, node)
    except Static as reason:
        if cutter.removed_at(node).classes.numel():  # any batch size is worth more than these channels
            raise cutter.block(node, str(reason)) from None
        raise
