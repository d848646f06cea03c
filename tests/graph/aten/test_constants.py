"""What is claimed constant is constant: closed forms, and the network itself on inputs of many kinds."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from compress.graph import channel_graph
from compress.graph.aten import labels
from compress.graph.aten.constants import RULES, ConstantFlow, pointwise
from compress.graph.aten.trace import base_name, functional, trace
from compress.graph.field import Field

NAN = float("nan")
X = torch.randn(1, 3, 8, 8, dtype=torch.float64)


def dead(layer, channels, value=0.0):
    """A layer whose ``channels`` are constant."""
    with torch.no_grad():
        layer.weight[channels] = 0
        layer.bias[channels] = value
    return layer


def source(value=1.5):
    """Three channels: constant, zero, alive."""
    return dead(dead(nn.Conv2d(3, 3, 1), [0], value), [1])


def last(m, y):
    return m.head(y.mean((2, 3)) if y.ndim == 4 else y)


def constants_at_head(model):
    graph = channel_graph(model.double(), (X,))
    (consumer,) = [c for c in graph.consumers if c.weight == "head.weight"]
    return consumer.constants


def bn(scale, shift, mean, variance):
    layer = nn.BatchNorm2d(3)
    for tensor, values in zip(
        (layer.weight, layer.bias, layer.running_mean, layer.running_var), (scale, shift, mean, variance), strict=True
    ):
        tensor.data.copy_(torch.tensor(values))
    layer.eps = 0.0
    return layer


STEPS = {
    "relu": (lambda m, y: F.relu(y - 1), [0.5, 0.0, NAN]),
    "sigmoid": (lambda m, y: torch.sigmoid(y), [1 / (1 + torch.tensor(-1.5).double().exp().item()), 0.5, NAN]),
    "prelu": (lambda m, y: m.prelu(-y), [-1.5 * 0.25, 0.0, NAN]),
    "batch norm": (lambda m, y: m.bn(y), [(1.5 - 1) / 2 + 3, (0 - 1) / 2 * 2 + 4, 5.0]),
    "add constants": (lambda m, y: y + m.other(y), [4.5, NAN, NAN]),
    "max pool with padding": (lambda m, y: F.max_pool2d(y, 3, 2, 1), [1.5, 0.0, NAN]),
    "average pool": (lambda m, y: F.avg_pool2d(y, 3), [1.5, 0.0, NAN]),
    "average pool that counts its padding": (lambda m, y: F.avg_pool2d(y, 3, 2, 1), [NAN, 0.0, NAN]),
    "average pool by another divisor": (lambda m, y: F.avg_pool2d(y, 2, divisor_override=1), [NAN, 0.0, NAN]),
    "average pool with ceil_mode": (lambda m, y: F.avg_pool2d(y, 3, ceil_mode=True), [1.5, 0.0, NAN]),
    "pad": (lambda m, y: F.pad(y, (1, 1, 1, 1)), [NAN, 0.0, NAN]),
    "pad by the constant": (lambda m, y: F.pad(y, (1, 1, 1, 1), value=1.5), [1.5, NAN, NAN]),
    "reflected pad": (lambda m, y: F.pad(y, (1, 1, 1, 1), mode="reflect"), [1.5, 0.0, NAN]),
    "gate": (
        lambda m, y: y * torch.sigmoid(m.other(y)),
        [1.5 / (1 + torch.tensor(-3.0).double().exp().item()), 0, NAN],
    ),
    "closed gate": (lambda m, y: m.other(y) * F.relu(y - 2), [0.0, 0.0, NAN]),
    "bilinear": (lambda m, y: F.interpolate(y, scale_factor=2, mode="bilinear"), [1.5, 0.0, NAN]),
    "depthwise": (lambda m, y: m.depthwise(y), [1.5 * 18 + 1, 1.0, NAN]),
    "padded depthwise": (lambda m, y: F.conv2d(y, m.depthwise.weight, m.depthwise.bias, 1, 1, 1, 3), [NAN, 1.0, NAN]),
    "division": (lambda m, y: y / 2, [0.75, 0.0, NAN]),
    "division by an unknown": (lambda m, y: y / m.other(y)[:, 1:2], [NAN, NAN, NAN]),
    "dropout": (lambda m, y: F.dropout(y, 0.5, False), [1.5, 0.0, NAN]),
    "dropout in evaluation mode too": (lambda m, y: F.dropout(y, 0.5, True), [NAN, NAN, NAN]),
    "comparison": (lambda m, y: (y > 1).double(), [NAN, NAN, NAN]),
    "where": (lambda m, y: torch.where(y > 1, 1.0, 0.0), [NAN, NAN, NAN]),
    "where, by a mask of the network": (lambda m, y: torch.where(m.mask, y, m.other(y)), [1.5, 0.0, NAN]),
    "where, from both sides": (lambda m, y: torch.where(m.checks, y, m.other(y) / 2), [1.5, NAN, NAN]),
    "masked fill": (lambda m, y: y.masked_fill(m.mask, 2.5), [2.5, 2.5, 2.5]),
    "masked fill of some places": (lambda m, y: y.masked_fill(m.checks, 0.0), [NAN, 0.0, NAN]),
    "where, by a part of a mask": (lambda m, y: torch.where(m.larger[:8, 1:9], y, 1.5), [NAN, NAN, NAN]),
    "positions of the network": (lambda m, y: y[(slice(None), slice(None), *m.places.unbind(-1))], [1.5, 0.0, NAN]),
    "unknown op": (lambda m, y: torch.nan_to_num(y), [NAN, NAN, NAN]),
    "flip of channels": (lambda m, y: y.flip(1), [NAN, 0.0, 1.5]),
    "overflow": (lambda m, y: torch.exp(y * 1000), [NAN, 1.0, NAN]),
}


@pytest.mark.parametrize("case", STEPS)
def test_closed_forms(net, case):
    step, expected = STEPS[case]
    other = dead(nn.Conv2d(3, 3, 1), [0], 3.0)
    other.weight.data[1] = torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1)
    depthwise = nn.Conv2d(3, 3, 3, groups=3)
    depthwise.weight.data.fill_(2.0)
    depthwise.bias.data.fill_(1.0)
    model = net(
        lambda m, x: last(m, step(m, m.source(x))),
        source=source(),
        prelu=nn.PReLU(3),
        bn=bn([1.0, 2.0, 0.0], [3.0, 4.0, 5.0], [1.0, 1.0, 1.0], [4.0, 4.0, 4.0]),
        other=other,
        depthwise=depthwise,
        head=nn.Linear(3, 2),
    )
    model.register_buffer("mask", torch.ones(8, 8, dtype=torch.bool))
    model.register_buffer("checks", torch.arange(64).reshape(8, 8) % 3 == 0)
    model.register_buffer("larger", torch.ones(9, 9, dtype=torch.bool))
    model.register_buffer("places", torch.tensor([[[1, 2], [-1, 0]], [[3, 3], [7, 0]]]))
    torch.testing.assert_close(
        constants_at_head(model), torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(3, 4), (1, 7), (16,), (67,)], ids=str)
def test_every_elementwise_rule_lets_unknowns_through(shape):
    """Vectorised kernels and their scalar tails may differ: hence several sizes."""
    x = torch.full(shape, NAN, dtype=torch.float64)
    more = {"clamp": (-1.0, 1.0), "hardtanh": (-1.0, 1.0), "clamp_min": (0.0,), "clamp_max": (0.0,)}
    more |= {"add": (1.0,), "sub": (1.0,), "rsub": (1.0,), "div": (2.0,)}
    more |= dict.fromkeys(("maximum", "minimum"), (torch.ones_like(x),))
    for op in [name for name, rule in RULES.items() if rule is pointwise]:
        y = getattr(torch.ops.aten, op)(x, *more.get(op, ()))
        assert bool(y.isnan().all()), op
    for op in ("add", "sub", "div", "clamp_min", "clamp_max", "maximum", "minimum"):
        for a, b in ((x, torch.ones_like(x)), (torch.ones_like(x), x)):
            assert bool(getattr(torch.ops.aten, op)(a, b).isnan().all()), op


def interpret(traced, model_inputs):
    """The value of every node."""
    env, given = {}, iter(model_inputs)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            env[node] = traced.tensors[node.name][1] if node.name in traced.tensors else next(given)
        elif node.op == "call_function":
            args, kwargs = tree_map_only(fx.Node, env.__getitem__, (node.args, node.kwargs))
            target = functional(node) if isinstance(node.target, torch._ops.OpOverload) else node.target
            env[node] = target(*args, **kwargs)
    return env


def zoo(m, x):
    """Many ops, some that only look constant."""
    y = m.a(x)
    values, indices = F.adaptive_max_pool2d(y, 2, return_indices=True)
    z = torch.cat((F.relu(m.bn(y)), F.avg_pool2d(y, 3, 1, 1), m.prelu(y)), 1)
    z = torch.cat((z.chunk(3, 1)[0], z[:, 2:5] * torch.sigmoid(z[:, :3]), z.roll(1, 1)), 1)
    squeezed = z.mean((2, 3), keepdim=True)
    z = z + squeezed - z.amax(1, keepdim=True).clamp(max=0)
    unbatched = F.avg_pool2d(F.pad(y, (0, 0, 1, 1))[0], 2)
    several = [
        values,
        indices,
        unbatched,
        torch.nan_to_num(y),
        torch.sign(y),
        y.pow(0),
        torch.maximum(y, y.detach()),
        torch.where(y > 0, y, 0),
        F.interpolate(z, scale_factor=2, mode="nearest"),
        F.interpolate(y, scale_factor=2, mode="bicubic"),
        m.grouped(z.repeat(1, 2, 1, 1)),
        torch.softmax(y, 1),
        F.pixel_shuffle(z.repeat(1, 4, 1, 1), 2),
        y.flatten(2).transpose(1, 2) @ m.head.weight.T,
        m.head(y.flatten(2).transpose(1, 2)),
        F.layer_norm(y.flatten(2).transpose(1, 2), (3,)),
        y.masked_fill(y > 0, 1.0),
        torch.zeros_like(y) + y,
        torch.eye(3, dtype=y.dtype).matmul(y.flatten(2)),
        F.conv_transpose2d(y, m.a.weight),
        y.to(torch.float32).double(),
        y.unfold(2, 2, 2),
        torch.einsum("nchw,dc->ndhw", y, m.head.weight),
        m.padded(y),
        m.reflected(y),
        F.max_pool2d(y, 3, 2, 1, ceil_mode=True),
        F.leaky_relu(F.hardswish(y) - 4),
        y[:, [0, 2]],
        y.sum(1),
        F.normalize(y, dim=1),
        y.expand(2, 3, 8, 8) / (y.abs() + 1),
    ]
    return last(m, y), z, *several


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
def test_every_claim_holds_on_random_inputs(net, value):
    model = net(
        zoo,
        a=source(value),
        bn=bn([0.0, 2.0, 1.0], [3.0, -4.0, 5.0], [1.0, 1.0, 1.0], [4.0, 4.0, 4.0]),
        prelu=nn.PReLU(3),
        grouped=nn.Conv2d(30, 6, 3, groups=3, padding=1),
        padded=nn.Conv2d(3, 4, 3, padding=1),
        reflected=nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        head=nn.Linear(3, 2),
    )
    model.padded.weight.data[0] = 0
    model.padded.weight.data[1, 2] = 0
    model.reflected.weight.data[0, 2] = 0
    model = model.double().eval()
    traced = trace(model, (X,))
    flow = ConstantFlow(traced)
    flow.run()
    inputs = [X, torch.zeros_like(X), 100 * torch.randn_like(X), -torch.rand_like(X), torch.ones_like(X)]
    claimed = 0
    with torch.no_grad():
        for env in [interpret(traced, (x,)) for x in inputs]:
            for node, truth in env.items():
                fields = tree_leaves(flow.env[node], is_leaf=lambda leaf: isinstance(leaf, Field))
                for field, tensor in zip(fields, tree_leaves(truth), strict=True):
                    if not isinstance(field, Field):
                        continue
                    assert field.shape == tuple(tensor.shape), (node, base_name(node))
                    known = ~field.full().isnan()
                    claimed += int(known.sum())
                    assert torch.allclose(field.full()[known], tensor.double()[known], rtol=1e-12), base_name(node)
    assert claimed > 5_000


@pytest.mark.parametrize("table", [RULES, labels.RULES], ids=["constants", "labels"])
def test_every_line_of_the_tables_names_an_op(table):
    assert [name for name in table if name != "getitem" and not hasattr(torch.ops.aten, name)] == []
