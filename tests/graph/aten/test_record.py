"""What is recorded is what ``torch.export`` tells, node by node; what can't be told so is left to ``torch.export``."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from compress.errors import ModelError
from compress.graph.aten.labels import place
from compress.graph.aten.record import NotRecordedError, record
from compress.graph.aten.trace import Trace, _quiet, evaluating, exported, recorded, trace
from compress.models import build
from compress.torchvision_compat import torchvision
from small_networks import Net, conv, pooled

X = torch.randn(1, 3, 32, 32)
CHECK = "aten._assert_tensor_metadata.default"
"""What ``torch.export`` puts beside casts; it computes nothing."""


def told(traced: Trace) -> list[tuple[Any, ...]]:
    """Every operation: its name, arguments, shapes and module; nodes by their number, tensors by their state names."""
    names: dict[fx.Node, str] = {}
    lines: list[tuple[Any, ...]] = []
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            held = traced.tensors.get(node.name)
            names[node] = held[0] if held is not None else f"input {traced.inputs.index(node.name)}"
        elif str(node.target) != CHECK:
            names[node] = f"%{len(lines)}"
            shapes = [tuple(value.shape) for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
            read = tree_map_only(fx.Node, lambda source: names[source], (node.args, dict(node.kwargs)))
            lines.append((str(node.target), repr(read), () if node.op == "output" else shapes, place(node)))
    return lines


def both(model: nn.Module, *inputs: Tensor) -> tuple[Trace, Trace]:
    """The trace that was recorded, and that of ``torch.export``."""
    with evaluating(model), torch.no_grad(), _quiet():
        return recorded(model, inputs), exported(model, inputs)


def assert_same(model: nn.Module, *inputs: Tensor) -> None:
    recorded, exported = both(model, *inputs)
    assert told(recorded) == told(exported)
    assert len(recorded.inputs) == len(exported.inputs)
    found, expected = dict(recorded.tensors.values()), dict(exported.tensors.values())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


class Several(nn.Module):
    """A dictionary, a tuple in it, an input that is returned as it is, and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.table = conv(3, 4), torch.arange(4.0)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        left, right = (self.a(x) * self.table[:, None, None]).chunk(2, 1)
        return {"halves": (left, [right + y]), "input": y, "nothing": None}


def created(m: nn.Module, x: Tensor) -> Tensor:
    places = torch.zeros((1, 32, 32)).cumsum(1) + torch.arange(32, dtype=x.dtype) * torch.ones(1, 1, 32)
    return m.a(x) + m.b(places[None].expand(-1, 3, -1, -1))


def set_items(m: nn.Module, x: Tensor) -> Tensor:
    mask = x.new_zeros((30, 30))
    mask[:15, 15:] = 2.0
    mask[-3:] = -1.0
    return m.a(x) * mask


def without_gradients(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = m.a(x).mean((2, 3), keepdim=True)
    return m.a(x) * scale


def dropped(m: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(F.relu(m.a(x), inplace=True), 0.5, m.training).flatten(1)


PLAIN = {
    "two inputs, a dictionary": lambda: (Several(), X, torch.randn(1, 2, 30, 30)),
    "tensors made in forward": lambda: (Net(created, a=conv(3, 4), b=conv(3, 4)), X),
    "a mask written part by part": lambda: (Net(set_items, a=conv(3, 4)), X),
    "no_grad in forward": lambda: (Net(without_gradients, a=conv(3, 4)), X),
    "dropout": lambda: (Net(dropped, a=conv(3, 4)), X),
    "attention": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 5, 8)),
    "recurrent": lambda: (nn.GRU(3, 4, batch_first=True), torch.randn(1, 5, 3)),
    "what a parameter is asked for": lambda: (Net(lambda m, x: m.a(x) * m.a.bias.requires_grad, a=conv(3, 4)), X),
    "an input that is changed": lambda: (Net(lambda m, x: m.a(x * 2).relu_(), a=conv(3, 4)), X),
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_what_forward_does_is_told_as_torch_export_tells_it(make):
    assert_same(*make())


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "mobilenetv2"])
def test_own_networks_are_told_as_torch_export_tells_them(name):
    assert_same(build(name, num_classes=10, in_channels=3, image_size=32), X)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "swin_t"])
def test_networks_of_torchvision_are_told_as_torch_export_tells_them(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    assert_same(model, torch.randn(1, 3, 64, 64))


def test_the_network_is_left_as_it_was(net):
    model = net(lambda m, x: pooled(m, m.bn(m.a(x))), a=conv(3, 4), bn=nn.BatchNorm2d(4), head=nn.Linear(4, 2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    with evaluating(model):
        record(model, (X,))
    assert model.training
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == held
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_forward_that_holds_the_network_itself_reads_its_parameters():
    model = nn.Sequential(conv(3, 4), conv(4, 2))
    first, second = model
    model.forward = lambda x: second(first(x))
    names = {name for name, _ in trace(model, (X,)).tensors.values()}
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias"}


def on_values(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x) if x.sum() > 0 else m.a(-x)


def hidden_failure(m: nn.Module, x: Tensor) -> Tensor:
    try:
        return m.a(x.data)
    except Exception:
        return m.a(x)


def in_autocast(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.a(x)


def reshaped_in_place(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(x).unsqueeze_(0)


def seen_twice(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y.flatten(1).relu_()
    return y


@torch.library.custom_op("compress_test_record::increment_", mutates_args=("x",))
def increment_(x: Tensor) -> None:
    x.add_(1)


def written_by_a_custom_op(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    increment_(y)
    return y * 2


def value_or_none(m: nn.Module, x: Tensor) -> Tensor:
    try:
        return m.a(x) * x.sum().item()
    except Exception:
        return m.a(x)


OTHERWISE = {
    "control flow on values": (on_values, "DataDependent"),
    "a tensor that no operation returned": (hidden_failure, "no operation returned"),
    "a failure that forward catches": (value_or_none, "DataDependent"),
    "a custom operation that writes": (written_by_a_custom_op, "another argument than its first"),
    "autocast": (in_autocast, "autocast"),
    "another shape in place": (reshaped_in_place, "changes a shape in place"),
    "a write that is seen under another name": (seen_twice, "under another name"),
}


@pytest.mark.parametrize(("run", "why"), OTHERWISE.values(), ids=OTHERWISE)
def test_what_cannot_be_told_so_is_left_to_torch_export(net, run, why):
    model = net(run, a=conv(3, 4)).eval()
    with torch.no_grad(), pytest.raises(NotRecordedError, match=why):
        recorded(model, (X,))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_parts_of_two_names_and_scripted_parts_are_left_to_torch_export():
    layer = conv(3, 3)
    tied = nn.Sequential(conv(3, 3), conv(3, 3))
    tied[1].weight = tied[0].weight
    for model in (nn.Sequential(layer, layer), tied):
        with pytest.raises(NotRecordedError, match="two names"):
            record(model, (X,))
    with pytest.raises(NotRecordedError, match="TorchScript"):
        record(nn.Sequential(torch.jit.script(nn.ReLU())), (X,))


class CopiedAnew(nn.Conv2d):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Conv2d:
        return CopiedAnew(3, 4, 3)


def test_a_part_that_is_copied_anew_is_left_to_torch_export():
    with pytest.raises(NotRecordedError, match="copies itself"):
        record(nn.Sequential(CopiedAnew(3, 4, 3)), (X,))


def test_one_tensor_for_two_inputs_is_two_inputs():
    traced = trace(Net(lambda m, x, y: m.a(x) - m.a(y * 2), a=conv(3, 4)), (X, X))
    assert len(set(traced.inputs)) == 2
    assert all(node.users for node in traced.graph.nodes if node.name in traced.inputs)


def data_of_a_parameter(m: nn.Module, x: Tensor) -> Tensor:
    m.a.weight.data = m.a.weight * 2
    return m.a(x)


def data_of_a_result(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y.data = F.relu(y)
    return y * 2


@pytest.mark.parametrize("run", [data_of_a_parameter, data_of_a_result])
def test_tensors_put_in_the_place_of_others_are_refused_as_no_graph_tells_them(run):
    with pytest.raises(ModelError, match=r"assigns to the \.data of a tensor"):
        trace(Net(run, a=conv(3, 4)), (X,))


def counted(m: nn.Module, x: Tensor) -> Tensor:
    m.calls = m.calls + 1
    return m.a(x) * m.calls


@pytest.mark.parametrize("buffer", [True, False])
def test_a_tensor_that_the_next_call_finds_changed_is_no_constant(buffer):
    model = Net(counted, a=conv(3, 4))
    if buffer:
        model.register_buffer("calls", torch.zeros(()))
    else:
        model.calls = torch.zeros(())
    traced = trace(model, (X,))
    assert [traced.tensors[name][0] for name in traced.written] == ["calls"]


def test_parts_under_torch_compile_arerecorded_as_they_run_without():
    compiled = torch.compile(lambda x: F.relu(x) * 2, backend="eager")
    own = conv(3, 4)
    own.compile(backend="eager")
    with torch.no_grad():
        found = recorded(
            Net(lambda m, x: compiled(m.b(m.a(x))), a=own, b=torch.compile(conv(4, 2), backend="eager")).eval(), (X,)
        )
    names = [line[0].removeprefix("aten.") for line in told(found)]
    assert names == ["conv2d.default", "conv2d.default", "relu.default", "mul.Tensor", "output"]


def test_threads_record_one_after_another():
    models = [nn.Sequential(*(conv(3, 3, padding=1) for _ in range(12))).eval() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda model: len(record(model, (X,)).graph.nodes), models))
    assert found == [12 + 24 + 1 + 1] * 3
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["torchvision", "timm"])
def test_the_networks_of_the_exam_are_told_as_torch_export_tells_them(suite, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "experiments")
    different = []
    for network in importlib.import_module("exam_networks").SUITES[suite]():
        if network.parameters() > 4e7:
            continue
        try:
            assert_same(network.quietly_built(), torch.randn(1, 3, network.size, network.size))
        except NotRecordedError:
            continue
        except AssertionError as error:
            different.append(f"{network.name}: {str(error)[:300]}")
    assert not different
