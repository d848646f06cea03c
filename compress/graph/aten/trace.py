"""From a module to its ATen graph, with parameters under their state-dict names."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from compress.errors import ModelError, first_line
from compress.graph.aten.record import NotRecordedError, record
from compress.graph.caches import unspoilt

DROPOUT = "dropout feature_dropout alpha_dropout feature_alpha_dropout"
_FRESH = (
    "clone conv1d conv2d conv3d linear batch_norm layer_norm group_norm prelu cat stack add sub mul div max_pool2d "
    "avg_pool2d relu relu6 leaky_relu elu silu gelu hardswish hardsigmoid hardtanh sigmoid tanh clamp "
    "slice_scatter select_scatter"
)
FRESH = frozenset(_FRESH.split())
"""Ops whose result never shares memory with an argument: what an in-place op writes there is seen nowhere else.

Everything else is assumed to share, also what does so only sometimes (``contiguous``, ``dropout`` in evaluation mode).
"""


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Attributes:
        graph: the ATen graph, one sample of every op's result in ``node.meta["val"]``.
        tensors: placeholder name -> (state-dict name, the tensor itself) of parameters, buffers and constants.
        inputs: placeholder names of the network's own inputs.
        written: placeholder names of the buffers that ``forward`` writes.
    """

    graph: fx.Graph
    tensors: dict[str, tuple[str, Tensor]]
    inputs: tuple[str, ...]
    written: frozenset[str] = frozenset()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; each submodule's own mode is restored at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:  # each for itself: beside one that came out of torch.export, others must follow
            with contextlib.suppress(NotImplementedError):  # it computes as it was traced
                module.eval()
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing printed, warned or logged by torch.export itself: what fails raises, and we tell it in one line."""
    with _ONE_AT_A_TIME:
        logger = logging.getLogger("torch")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.setLevel(level)


_ONE_AT_A_TIME = threading.RLock()
"""Streams, warnings and loggers are the same in all threads."""


def trace(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Trace:
    """Capture ``model`` in evaluation mode, sizes fixed to those of ``example_inputs``.

    It is recorded in one run; ``torch.export`` is asked where that can't tell.

    Raises:
        ModelError: the model can't be captured (data-dependent control flow, a ScriptModule, a wrong input size).
    """
    if isinstance(model, nn.DataParallel):
        raise ModelError("the model is wrapped in DataParallel; pass the network itself, model.module.")
    check_inputs(example_inputs)
    with unspoilt(model), evaluating(model), torch.no_grad(), _quiet():
        with contextlib.suppress(NotRecordedError):
            return recorded(model, example_inputs)
        return exported(model, example_inputs)


def check_inputs(example_inputs: object) -> None:
    """Refuse what is no tuple of tensors.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(example_inputs, tuple) or not all(isinstance(x, Tensor) for x in example_inputs):
        got = type(example_inputs).__name__
        if isinstance(example_inputs, (tuple, list)):
            got += " of " + (", ".join(sorted({type(x).__name__ for x in example_inputs})) or "nothing")
        raise ModelError(f"example_inputs: expected a tuple of tensors, (x,), got {got}.")


def recorded(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Trace:
    """The quick way of ``trace``, for a model in evaluation mode; see ``record``.

    Raises:
        NotRecordedError: this needs ``torch.export``.
    """
    found = record(model, example_inputs)
    _remove_idle_dropout(found.graph)
    write_out_of_place(found.graph)
    if _needs_functional_form(found.graph):
        raise NotRecordedError("it writes to what is seen under another name")
    remove_unread(found.graph)
    return Trace(found.graph, found.tensors, found.inputs, found.written)


def exported(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Trace:
    """The other way of ``trace``, for a model in evaluation mode: by ``torch.export``.

    Raises:
        ModelError: the model can't be captured so.
    """
    try:
        program = torch.export.export(model, example_inputs)
        inline_blocks(program.graph_module)
        _remove_idle_dropout(program.graph)
        written = _written(program.graph)
        write_out_of_place(program.graph)
        if _needs_functional_form(program.graph):
            program = program.run_decompositions({})
        remove_unread(program.graph)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in example_inputs)
        raise ModelError(
            f"{type(model).__name__} could not be captured by torch.export with inputs of shape {shapes}: "
            f"{first_line(error)}{_place(str(error))}\nCheck that the model runs with this input, and that its forward "
            "has no control flow that depends on values."
        ) from error
    _refuse_open_sizes(model, program.graph)
    tensors: dict[str, tuple[str, Tensor]] = {}
    inputs: list[str] = []
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        elif spec.target is not None:
            source = program.constants if spec.target in program.constants else program.state_dict
            value = source[spec.target]
            if isinstance(value, Tensor):
                tensors[name] = (spec.target, value.detach())
    return Trace(program.graph, tensors, tuple(inputs), written)


def _place(told: str) -> str:
    """The line of ``forward`` that torch.export's message names last, if it names one."""
    places = re.findall(r'^ *File "(.+)", line (\d+), in .+\n *(.*)', told, re.MULTILINE)
    return " (at {}, line {}: {})".format(*places[-1]) if places else ""


def _written(graph: fx.Graph) -> frozenset[str]:
    """Placeholders that an in-place op writes to, also through a view."""
    source: dict[fx.Node, fx.Node] = {}
    found = set()
    for node in graph.nodes:
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if node.op == "placeholder":
            source[node] = node
        elif first in source and base_name(node) not in FRESH:
            source[node] = source[first]
        mutable = _is_mutable(node) and base_name(node) != "detach"  # which changes no value
        if mutable and first in source:
            found.add(source[first].name)
    return frozenset(found)


def _refuse_open_sizes(model: nn.Module, graph: fx.Graph) -> None:
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            raise ModelError(
                f"{type(model).__name__}: the shape of {node.name} depends on the values of the input; such a network "
                "can't be followed. Take this operation out of the network, and do it behind it."
            )
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) and any(_computes(u) for u in node.users):
            raise ModelError(
                f"{type(model).__name__}: forward reads a number out of a tensor ({node.name}) and computes with it; "
                "such a network can't be followed. Compute with the tensor itself, without .item() and the like."
            )


def _computes(node: fx.Node) -> bool:
    """Whether it is more than an output, or a check that torch.export puts beside a number."""
    return node.op == "call_function" and not base_name(node).startswith(("_assert", "sym_constrain"))


def base_name(node: fx.Node) -> str:
    """The op's name without overload and without the underscore of in-place variants: ``relu_.default`` -> ``relu``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
        return name.rstrip("_") if name.endswith("_") and not name.startswith("_") else name
    return getattr(target, "__name__", str(target))


def functional(node: fx.Node) -> torch._ops.OpOverload:
    """The out-of-place overload of the node's op."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} is no ATen op: {target}")
    name = target._schema.name.split("::")[-1]
    if not name.endswith("_") or name.endswith("__"):  # aten::__and__
        return target
    packet = getattr(getattr(torch.ops, target.namespace), name[:-1])
    overload: torch._ops.OpOverload = getattr(packet, target._overloadname)
    return overload


BLOCKS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Ops that stand for a ``with`` block of ``forward`` -> which argument is the block; those behind it are its inputs."""


def inline_blocks(module: fx.GraphModule) -> bool:
    """Put ``with torch.no_grad():`` and ``with torch.autocast(..., enabled=False):`` in line, in place.

    They change no value of a network that runs in one precision. Autocast that is enabled does, and stays.

    Returns:
        Whether gradients were switched in a block that was put in line.
    """
    switched = False
    for node in list(module.graph.nodes):
        name = base_name(node)
        if name not in BLOCKS or (name == "wrap_with_autocast" and node.args[2]):
            continue
        block = node.args[BLOCKS[name]]
        inner = getattr(module, block.target)
        switched |= inline_blocks(inner) or name == "wrap_with_set_grad_enabled"
        if any(n.op == "get_attr" for n in inner.graph.nodes):  # it holds a block that stays
            continue
        inputs = (n for n in inner.graph.nodes if n.op == "placeholder")
        with module.graph.inserting_before(node):
            results: Any = module.graph.graph_copy(
                inner.graph, dict(zip(inputs, node.args[BLOCKS[name] + 1 :], strict=True))
            )
        for user in list(node.users):  # it picks one of the results
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        if not block.users:
            module.graph.erase_node(block)
    return switched


def _remove_idle_dropout(graph: fx.Graph) -> None:
    """Take out dropout that does nothing: eager mode returns the very tensor, so that in-place ops write through it."""
    for node in list(graph.nodes):
        if base_name(node) in DROPOUT.split() and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def remove_unread(graph: fx.Graph) -> None:
    """Take out what nothing reads: the weights that attention averages for nobody would tie its heads."""
    for node in reversed(list(graph.nodes)):
        pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
        if pure and not node.users and not base_name(node).startswith(CHECKS):
            graph.erase_node(node)


CHECKS = ("_assert", "sym_constrain_range")
"""Beginnings of the names of operations that only check something."""


SCATTER = {
    torch.ops.aten.slice.Tensor: torch.ops.aten.slice_scatter.default,
    torch.ops.aten.select.int: torch.ops.aten.select_scatter.default,
}
"""View -> what puts other values in its place: both take the same arguments behind the tensors."""

_CREATED = "zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like arange"
CREATED = frozenset(_CREATED.split())
"""Ops that make a tensor of a given size."""


def write_out_of_place(graph: fx.Graph) -> None:
    """Turn ``mask[1:3, 2:] = 7`` into a chain of scatters, where nobody else can see what is written.

    Networks that build a mask so would otherwise need the functional form of all, which takes longer than the trace.
    """
    for node in list(graph.nodes):
        root, *views = _written_through(node)
        if not views or node.users or any(len(view.users) > 1 for view in views):
            continue
        others = [user for user in root.users if user < node and user is not views[0]]
        if any(_may_share(user) for user in others) or (_may_share(root) and base_name(root) not in CREATED):
            continue
        with graph.inserting_before(node):
            value = _insert(graph, functional(node), node.args, node.kwargs)
            here = views[-1].meta["val"]
            if (value.meta["val"].shape, value.meta["val"].dtype) != (here.shape, here.dtype):
                graph.erase_node(value)
                continue
            for view in reversed(views):
                scatter = SCATTER[view.target]  # type: ignore[index]
                value = _insert(graph, scatter, (view.args[0], value, *view.args[1:]), view.kwargs)
        for user in list(root.users):
            if value < user:
                user.replace_input_with(root, value)
        graph.erase_node(node)


def _written_through(node: fx.Node) -> tuple[fx.Node, ...]:
    """What the in-place op ``node`` writes to, and the slices of it that lead there; at least one node."""
    written = node.args[0] if _is_mutable(node) and node.args else node
    views: list[fx.Node] = []
    while isinstance(written, fx.Node) and written.target in SCATTER:
        views.append(written)
        written = written.args[0]
    return (written, *reversed(views)) if isinstance(written, fx.Node) else (node,)


def _may_share(node: fx.Node) -> bool:
    """Whether the result may be an argument under another name."""
    return _is_mutable(node) or base_name(node) not in FRESH


def _insert(graph: fx.Graph, target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
    """A node with the sample of its result."""
    node = graph.call_function(target, args, kwargs)
    sample_args, sample_kwargs = fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
    node.meta["val"] = target(*sample_args, **sample_kwargs)
    return node


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _needs_functional_form(graph: fx.Graph) -> bool:
    """Whether an in-place op writes to something that is seen under another name.

    Otherwise an in-place op is its out-of-place form, and the costlier functional graph is not needed.
    """
    for node in graph.nodes:
        if not _is_mutable(node):
            continue
        written = node.args[0] if node.args else None
        if not isinstance(written, fx.Node) or len(written.users) > 1 or base_name(written) not in FRESH:
            return True
    return False
