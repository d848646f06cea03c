import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_map_only

from compress.errors import ModelError
from compress.graph.aten.trace import base_name, functional, trace

X = torch.randn(1, 3, 8, 8)


def ops(traced):
    return [base_name(node) for node in traced.graph.nodes if node.op == "call_function"]


def test_parameters_keep_their_state_names_and_modes_are_restored(net):
    model = net(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    model.train()
    model.bn.eval()
    traced = trace(model, (X,))
    names = {name for name, _ in traced.tensors.values()}
    assert names >= {"conv.weight", "conv.bias", "bn.weight", "bn.running_mean"}
    assert len(traced.inputs) == 1
    assert model.training
    assert not model.bn.training


def test_beside_a_layer_out_of_torch_export_the_others_evaluate(net):
    exported = torch.export.export(nn.Conv2d(3, 4, 3), (X,)).module()  # refuses eval()
    model = net(lambda m, x: m.bn(m.front(x)), front=exported, bn=nn.BatchNorm2d(4))
    traced = trace(model, (X,))
    (norm,) = (node for node in traced.graph.nodes if base_name(node) == "batch_norm")
    assert norm.args[5] is False  # whether it uses the statistics of the batch
    assert model.bn.training


def test_in_place_activations_need_no_functional_form(net):
    model = net(lambda m, x: m.act(m.conv(x)), conv=nn.Conv2d(3, 4, 3), act=nn.ReLU(inplace=True))
    assert ops(trace(model, (X,))) == ["conv2d", "relu"]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: (lambda y: y[:, :2].relu_() + y[:, 2:])(m.conv(x)),
        lambda m, x: (lambda y: F.dropout(y, 0.5, False).relu_() + y)(m.conv(x)),
        lambda m, x: (lambda y: y.contiguous().relu_() + y)(m.conv(x)),
        lambda m, x: (lambda y: y.flatten(1).relu_().sum() + y)(m.conv(x)),
        lambda m, x: (lambda y: y.relu_() + y)(m.conv(x)),
        lambda m, x: (lambda y: (y.mul_(2).add_(1), y * 3)[1])(m.conv(x)),
    ],
    ids=["slice", "dropout", "contiguous", "flatten", "the tensor itself", "a chain"],
)
def test_every_op_may_be_read_as_out_of_place(net, run):
    model = net(run, conv=nn.Conv2d(3, 4, 3))
    torch.testing.assert_close(read_out_of_place(trace(model, (X,))), model(X).detach())


def read_out_of_place(traced):
    env = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            env[node] = traced.tensors[node.name][1] if node.name in traced.tensors else X
        elif node.op == "call_function":
            args, kwargs = tree_map_only(fx.Node, env.__getitem__, (node.args, node.kwargs))
            env[node] = functional(node)(*args, **kwargs)
            assert env[node].shape == node.meta["val"].shape, node
            assert env[node].dtype == node.meta["val"].dtype, node
    (result,) = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    return env[result]


def write(y, place, value):
    y[place] = value
    return y


ROWS = slice(1, 3)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: write(m.conv(x), (slice(None), ROWS), 3.0),
        lambda m, x: write(write(m.conv(x), (slice(None), ROWS, slice(1, None)), 3.0), (0, 2), -1.0) * 2,
        lambda m, x: write(m.conv(x), (slice(None), slice(None, None, 2)), torch.arange(6.0)),
        lambda m, x: (lambda y: (y * 2, write(y, (slice(None), 1), 0.0))[0] + y)(m.conv(x)),
        lambda m, x: m.conv(x) + write(x.new_zeros(6, 6), (ROWS, slice(-2, None)), 7),
    ],
    ids=["a slice", "twice", "values", "read before and after", "a mask"],
)
def test_what_is_written_to_parts_is_scattered(net, run, monkeypatch: pytest.MonkeyPatch):
    model = net(run, conv=nn.Conv2d(3, 4, 3))
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)  # it must not be needed
    torch.testing.assert_close(read_out_of_place(trace(model, (X,))), model(X).detach())


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: (lambda y: (lambda v: (write(y, (slice(None), ROWS), 3.0), v)[1])(y[:, 1:]))(m.conv(x)),
        lambda m, x: (lambda y: (lambda v: (write(v, (slice(None), ROWS), 3.0), y)[1])(y[:, 1:]))(m.conv(x)),
        lambda m, x: (lambda y: (lambda v: (v.zero_(), y + v.sum())[1])(y[:, 1:]))(m.conv(x)),
        lambda m, x: (lambda y: (lambda v: (write(y, (0, 1), 3.0), v * 2)[1])(y.flatten(1)))(m.conv(x)),
        lambda m, x: (lambda y: (lambda v: (write(v, (0, 1), 3.0), y)[1])(y.view(1, 4, 36)))(m.conv(x)),
        lambda m, x: (lambda y: (lambda v: (write(y, (0, 1), 3.0), v * 2)[1])(y[:, ROWS].relu_()))(m.conv(x)),
        lambda m, x: (lambda y: (lambda v: (write(y, (0, 1), 3.0), v * 2)[1])(y.mul_(2)))(m.conv(x)),
        lambda m, x: (lambda y: (y[:, 2:].mul_(y[:, :2]), y)[1])(m.conv(x)),
    ],
    ids=[
        "an older slice",
        "into a slice",
        "the slice is read",
        "a view",
        "into a view",
        "a result in place",
        "itself",
        "own values",
    ],
)
def test_what_is_seen_under_another_name_stays_right(net, run):
    model = net(run, conv=nn.Conv2d(3, 4, 3))
    torch.testing.assert_close(read_out_of_place(trace(model, (X,))), model(X).detach())


def test_control_flow_on_values_is_refused_with_the_shape(net, caplog):
    model = net(lambda m, x: m.conv(x) if x.sum() > 0 else x, conv=nn.Conv2d(3, 4, 3))
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelError, match=r"Net could not be captured.*\(1, 3, 8, 8\)"):
        trace(model, (X,))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_line_with_the_control_flow_is_named(net):
    def run(model, x):
        if x.mean() > 0:
            x = x * 2
        return model.conv(x)

    line = run.__code__.co_firstlineno + 1
    with pytest.raises(ModelError, match=rf"\(at {re.escape(__file__)}, line {line}: if x\.mean\(\) > 0:\)\nCheck"):
        trace(net(run, conv=nn.Conv2d(3, 4, 3)), (X,))


def test_data_parallel_is_refused():
    with pytest.raises(ModelError, match=r"model\.module"):
        trace(nn.DataParallel(nn.Conv2d(3, 4, 3)), (X,))
