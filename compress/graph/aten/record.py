"""An ATen graph from one run on tensors without values: what ``torch.export`` tells, in a fraction of its time.

The network runs once, on a copy whose tensors hold sizes alone, and every operation is noted as it is called, before
torch takes it apart. What such a run can't tell in the same words as ``torch.export`` (control flow on values, parts in
TorchScript, autocast, operations that change the shape of a tensor in place) is left to ``torch.export``.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from compress.errors import ModelError
from compress.graph.nested import leaves, map_only


class NotRecordedError(Exception):
    """A run that a graph of single operations does not tell; ``torch.export`` may."""


@dataclass
class Recording:
    """What was recorded.

    Attributes:
        graph: the ATen graph, a sample of every op's result in ``node.meta["val"]``.
        tensors: placeholder name -> (state-dict name, the tensor itself) of parameters, buffers and constants.
        inputs: placeholder names of the network's own inputs.
        written: placeholder names of the tensors that ``forward`` puts others in the place of.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    tensors: dict[str, tuple[str, Tensor]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    written: frozenset[str] = frozenset()


def record(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Recording:
    """Run a copy of ``model``, in the mode that it is in, and note every operation.

    Args:
        model: the network; it is not changed, and nothing of it is computed.
        example_inputs: one tensor for each argument of ``forward``.

    Raises:
        NotRecordedError: the run can't be told so.
        ModelError: nor can ``torch.export`` tell it.
    """
    _refuse_parts(model)
    try:
        with _ONE_AT_A_TIME:
            return _recorded(model, example_inputs)
    except (ModelError, NotRecordedError):
        raise
    except Exception as error:  # whatever a user's forward raises on tensors without values
        torch.compiler.reset()  # what compiles itself (torch.cond) would go on failing as it did in here
        raise NotRecordedError(f"{type(error).__name__}: {error}") from error


_ONE_AT_A_TIME = threading.RLock()
"""The modes that see operations before autograd are the same in all threads."""


def _refuse_parts(model: nn.Module) -> None:
    """What would be told under another name than ``torch.export`` gives it, or takes no hooks."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise NotRecordedError("a part in TorchScript")
    for named in (model.named_modules, model.named_parameters, model.named_buffers):
        names = [name for name, _ in named(remove_duplicate=False)]
        if len(names) > len(list(named())):
            raise NotRecordedError("a part of two names")


def _recorded(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Recording:
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder()
    memo: dict[int, Any] = {}
    for name, tensor in state(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = fake = _without_values(fake_mode, tensor)
            recorder.add_tensor(name, tensor, fake)
    empty = copy.deepcopy(model, memo)
    before = dict(state(empty))
    if any(before.get(name) is not memo[id(tensor)] for name, tensor in state(model)):
        raise NotRecordedError("a part that copies itself in its own way")
    inputs = tuple(_without_values(fake_mode, x) for x in example_inputs)
    recorder.add_inputs(inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the same sums in operations of other names
    try:
        # without cuDNN: what torch.export notes of layers that could use it
        without_cudnn = torch.backends.cudnn.flags(enabled=False)
        eager = torch.compiler.set_stance("force_eager")  # parts under torch.compile
        with without_cudnn, eager, recorder.watching(empty), fake_mode, enable_python_dispatcher(), recorder:
            result = empty(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    after = dict(state(empty))
    return recorder.finish(result, [tensor for name, tensor in before.items() if after.get(name) is not tensor])


def state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, and what else modules hold as an attribute: state-dict name or path, and tensor."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}".lstrip("."), value


def _without_values(fake_mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A tensor of its own, even if ``tensor`` is given twice, with what Python can ask of it."""
    fake: Tensor = fake_mode.from_tensor(tensor.detach())
    if isinstance(tensor, nn.Parameter):
        fake = nn.Parameter(fake, requires_grad=False)
    vars(fake).update(vars(tensor))
    return fake.requires_grad_(tensor.requires_grad)


class _Recorder(SchemaCheckMode):  # type: ignore[no-untyped-call]
    """Sees operations before autograd, and before composite ones are taken apart.

    Of the modes that torch lets in there, its base class is the one without a meaning of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dispatch_key = torch._C.DispatchKey.PreDispatch
        self._recording = Recording()
        self._nodes = WeakTensorKeyDictionary()
        self._memory = WeakTensorKeyDictionary()
        self._made = 0
        self._modules: list[tuple[str, type[nn.Module]]] = []
        self._refused: Exception | None = None

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Note in which module an operation is called."""
        handles = []
        for path, module in model.named_modules():
            entry = (path, type(module))
            handles.append(module.register_forward_pre_hook(lambda _m, _x, entry=entry: self._modules.append(entry)))
            handles.append(
                module.register_forward_hook(lambda _m, _x, _y: self._modules.pop() and None, always_call=True)
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add_tensor(self, name: str, tensor: Tensor, fake: Tensor) -> None:
        """A placeholder for a tensor of the network, and for what stands for it in the run."""
        node = self._placeholder(name.replace(".", "_"), fake)
        self._recording.tensors[node.name] = (name, tensor)
        self._set(tensor, node)  # a forward may hold the network itself, in a closure

    def add_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        """Placeholders for the network's inputs."""
        self._recording.inputs = tuple(self._placeholder("input", x).name for x in inputs)

    def finish(self, result: Any, replaced: Iterable[Tensor]) -> Recording:
        """The recording, with what the network returned, and which of its tensors it put others in the place of."""
        if self._refused is not None:  # a forward may have caught it
            raise self._refused
        results = tree_leaves(result)
        if not all(leaf is None or isinstance(leaf, (Tensor, int, float, str)) for leaf in results):
            raise NotRecordedError("an output that is no tensor")
        self._recording.graph.output(tuple(self._node(leaf) if isinstance(leaf, Tensor) else leaf for leaf in results))
        tensors = {node: (name, tensor.detach()) for node, (name, tensor) in self._recording.tensors.items()}
        return replace(
            self._recording, tensors=tensors, written=frozenset(self._nodes[tensor].name for tensor in replaced)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note one operation, and run it."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.detach_.default:  # part of torch.tensor(1.0); it changes no value
            return func(*args)
        target = torch.ops.aten.lift_fresh_copy.default if func is torch.ops.aten.lift_fresh.default else func
        try:
            _check(func, args)
            read, named = map_only(Tensor, self._node, (args, kwargs))
            result = func(*args, **kwargs)
        except Exception as error:
            self._refused = error
            raise
        name = target._schema.name.split("::")[-1]
        node = self._recording.graph.create_node("call_function", target, read, named, name)
        sample = result if any(isinstance(a, Tensor) for a in leaves(args)) else _apart(result)
        node.meta = {"val": sample, "nn_module_stack": {path: (path, kind) for path, kind in self._modules}}
        if func._schema.is_mutable:
            self._set(args[0], node)
        self._name_results(node, result)
        return result

    def _name_results(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            self._set(result, node)
        elif isinstance(result, (tuple, list)):
            for position, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self._recording.graph.call_function(operator.getitem, (node, position))
                    item.meta = node.meta | {"val": part}
                    self._set(part, item)

    def _placeholder(self, name: str, sample: Tensor) -> fx.Node:
        node = self._recording.graph.placeholder(name)
        node.meta["val"] = sample
        self._set(sample, node)
        return node

    def _node(self, tensor: Tensor) -> fx.Node:
        """What a tensor is in the graph; one with values was made of numbers in ``forward``."""
        if tensor not in self._nodes:
            if isinstance(tensor, FakeTensor):
                raise NotRecordedError("a tensor that no operation returned")  # x.data
            path = self._modules[-1][0] if self._modules else ""
            with self._recording.graph.inserting_before(self._first_operation()):
                self.add_tensor(f"{path}.lifted_tensor_{self._made}".lstrip("."), tensor, tensor)
            self._made += 1
        node: fx.Node = self._nodes[tensor]
        if not _same(self._memory[tensor], tensor):
            raise ModelError(
                f"forward assigns to the .data of a tensor ({node.name}), which no graph of the network tells; "
                "use the new tensor itself, or copy_()."
            )
        return node

    def _first_operation(self) -> fx.Node:
        nodes = iter(self._recording.graph.nodes)
        return next((node for node in nodes if node.op != "placeholder"), self._recording.graph._root)

    def _set(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[tensor] = node
        self._memory[tensor] = _memory(tensor)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies; the storage itself, as an address is used again once it is free."""
    if tensor.layout is not torch.strided:
        return ()
    return tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()


def _same(before: tuple[Any, ...], tensor: Tensor) -> bool:
    now = _memory(tensor)
    return before[1:] == now[1:] and [storage._cdata for storage in before[:1]] == [s._cdata for s in now[:1]]


def _apart(result: Any) -> Any:
    """Another tensor of that size: torch returns a copy of a new tensor (``torch.zeros``) that somebody holds."""
    return result.detach() if isinstance(result, Tensor) else result


def _check(func: Any, args: tuple[Any, ...]) -> None:
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise NotRecordedError("autocast")
    if torch.Tag.inplace_view in func.tags:
        raise NotRecordedError(f"{func} changes a shape in place")
    written = [position for position, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
    in_place = func.namespace == "aten" and func._schema.name.endswith("_") and args and isinstance(args[0], Tensor)
    if written and not (written == [0] and in_place):
        raise NotRecordedError(f"{func} writes to another argument than its first")
