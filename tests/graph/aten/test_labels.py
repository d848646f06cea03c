"""Which channels are tied, by every way that data takes; and which are kept, with what reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from compress.graph import channel_graph
from small_networks import pooled

X = torch.randn(1, 3, 8, 8)


def conv(inputs, outputs, kernel=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


def head(inputs):
    return nn.Linear(inputs, 2)


def classes(graph, name, dim=0):
    return graph.classes.parameters[name][dim].tolist()


def reasons(graph, name, dim=0):
    """The distinct reasons for which the channels of a parameter stay."""
    found = graph.classes.reasons
    return {why for cls in classes(graph, name, dim) for why in found.get(cls, [])}


def is_free(graph, name, dim=0):
    return graph.free()[graph.classes.parameters[name][dim]].tolist()


def test_a_chain_ties_a_layer_to_its_reader_and_pins_both_ends(net):
    model = net(lambda m, x: pooled(m, F.relu(m.bn(m.a(x)))), a=conv(3, 4), bn=nn.BatchNorm2d(4), head=head(4))
    graph = channel_graph(model, (X,))
    assert classes(graph, "a.weight") == classes(graph, "head.weight", 1) == classes(graph, "bn.running_var")
    assert classes(graph, "a.bias") == classes(graph, "bn.bias") == classes(graph, "bn.weight")
    assert len(set(classes(graph, "a.weight"))) == 4
    assert is_free(graph, "a.weight") == [True] * 4
    assert reasons(graph, "a.weight", 1) == {"input of the network"}
    assert reasons(graph, "head.weight") == reasons(graph, "head.bias") == {"output of the network"}


@pytest.mark.parametrize("swap", [False, True])
def test_a_residual_add_ties_both_sides(net, swap):
    def run(m, x):
        y = m.a(x)
        return pooled(m, m.b(y) + y if swap else y + m.b(y))

    graph = channel_graph(net(run, a=conv(3, 4), b=conv(4, 4, 3, padding=1), head=head(4)), (X,))
    assert classes(graph, "a.weight") == classes(graph, "b.weight") == classes(graph, "b.weight", 1)
    assert [c.padded for c in graph.consumers] == [False, True, False]


def test_concat_keeps_channels_apart_and_in_order(net):
    def run(m, x):
        y = m.a(x)
        return pooled(m, torch.cat((m.b(y), y), 1))

    graph = channel_graph(net(run, a=conv(3, 2), b=conv(2, 3), head=head(5)), (X,))
    assert classes(graph, "head.weight", 1) == classes(graph, "b.weight") + classes(graph, "a.weight")


def test_flatten_gives_each_channel_its_block_of_features(net):
    model = net(lambda m, x: m.head(m.a(x).flatten(1)), a=conv(3, 2, 7), head=head(8))
    graph = channel_graph(model, (X,))
    first, second = classes(graph, "a.weight")
    assert classes(graph, "head.weight", 1) == [first] * 4 + [second] * 4


def test_permuted_features_are_followed(net):
    model = net(lambda m, x: m.head(m.a(x).permute(0, 2, 3, 1).reshape(1, -1)), a=conv(3, 2, 7), head=head(8))
    graph = channel_graph(model, (X,))
    assert classes(graph, "head.weight", 1) == classes(graph, "a.weight") * 4


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_outputs_are_their_input(net, multiplier):
    model = net(
        lambda m, x: pooled(m, m.dw(m.a(x))),
        a=conv(3, 2),
        dw=conv(2, 2 * multiplier, 3, groups=2),
        head=head(2 * multiplier),
    )
    graph = channel_graph(model, (X,))
    first, second = classes(graph, "a.weight")
    expected = [first] * multiplier + [second] * multiplier
    assert classes(graph, "dw.weight") == classes(graph, "dw.bias") == classes(graph, "head.weight", 1) == expected
    assert [c.weight for c in graph.consumers] == ["a.weight", "head.weight"]


def test_a_squeeze_excite_gate_belongs_to_the_channels_it_scales(net):
    def run(m, x):
        y = m.a(x)
        return pooled(m, y * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1))))))

    graph = channel_graph(net(run, a=conv(3, 4), down=conv(4, 2), up=conv(2, 4), head=head(4)), (X,))
    assert classes(graph, "up.weight") == classes(graph, "a.weight") == classes(graph, "down.weight", 1)
    assert is_free(graph, "down.weight") == [True] * 2
    assert is_free(graph, "a.weight") == [True] * 4


def test_chunk_and_split_are_followed(net):
    def run(m, x):
        one, two = m.a(x).chunk(2, 1)
        left, right = m.b(x).split([1, 3], 1)
        return m.head(torch.cat((one * torch.sigmoid(two), right, left), 1).mean((2, 3)))

    graph = channel_graph(net(run, a=conv(3, 4), b=conv(3, 4), head=head(6)), (X,))
    a, b = classes(graph, "a.weight"), classes(graph, "b.weight")
    assert a[:2] == a[2:]
    assert classes(graph, "head.weight", 1) == a[:2] + b[1:] + b[:1]
    assert graph.sized[graph.classes.parameters["a.weight"][0]].tolist() == [True] * 4
    assert graph.sized[graph.classes.parameters["b.weight"][0]].tolist() == [True] * 4


def test_channel_shuffle_is_followed(net):
    def run(m, x):
        n, c, h, w = (y := m.a(x)).shape
        return pooled(m, y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    graph = channel_graph(net(run, a=conv(3, 4), head=head(4)), (X,))
    a = classes(graph, "a.weight")
    assert classes(graph, "head.weight", 1) == [a[0], a[2], a[1], a[3]]


def test_in_place_ops_on_views_are_seen(net):
    def run(m, x):
        y = m.a(x)
        y[:, :2].copy_(y[:, 2:])
        return pooled(m, y)

    graph = channel_graph(net(run, a=conv(3, 4), head=head(4)), (X,))
    _, _, *written = a = classes(graph, "a.weight")
    assert classes(graph, "head.weight", 1) == written * 2
    assert len(set(a)) == 4
    assert is_free(graph, "a.weight") == [True] * 4


def test_a_shared_module_ties_its_outputs_to_its_inputs(net):
    model = net(lambda m, x: pooled(m, m.b(m.b(m.a(x)))), a=conv(3, 4), b=conv(4, 4), head=head(4))
    graph = channel_graph(model, (X,))
    assert classes(graph, "b.weight") == classes(graph, "b.weight", 1) == classes(graph, "a.weight")
    assert [c.weight for c in graph.consumers].count("b.weight") == 2


def test_tied_parameters_are_one(net):
    b, c = conv(4, 4), conv(4, 4)
    c.weight = b.weight
    model = net(lambda m, x: pooled(m, m.c(m.b(m.a(x)))), a=conv(3, 4), b=b, c=c, head=head(4))
    graph = channel_graph(model, (X,))
    (name,) = {consumer.weight for consumer in graph.consumers} - {"a.weight", "head.weight"}
    assert classes(graph, name) == classes(graph, name, 1) == classes(graph, "a.weight")


@pytest.mark.parametrize(("mode", "padding"), [("reflect", 1), ("replicate", 1), ("circular", 1), ("constant", 1)])
def test_borders_belong_to_their_channel(net, mode, padding):
    model = net(
        lambda m, x: pooled(m, m.b(F.pad(m.a(x), [padding] * 4, mode=mode))),
        a=conv(3, 4),
        b=conv(4, 2, 3),
        head=head(2),
    )
    graph = channel_graph(model, (X,))
    assert classes(graph, "b.weight", 1) == classes(graph, "a.weight")
    assert is_free(graph, "a.weight") == [True] * 4


@pytest.mark.parametrize(
    "resize",
    [
        lambda y: F.interpolate(y, scale_factor=2, mode="nearest"),
        lambda y: F.interpolate(y, size=(5, 7), mode="bilinear"),
        lambda y: F.max_pool2d(y, 3, 2, 1),
        lambda y: F.avg_pool2d(y, 2),
        lambda y: F.adaptive_max_pool2d(y, 2),
        lambda y: torch.roll(y, 1, 2),
        lambda y: y.flip(3),
    ],
)
def test_what_moves_within_a_channel_ties_nothing(net, resize):
    graph = channel_graph(net(lambda m, x: pooled(m, resize(m.a(x))), a=conv(3, 4), head=head(4)), (X,))
    assert classes(graph, "head.weight", 1) == classes(graph, "a.weight")
    assert is_free(graph, "a.weight") == [True] * 4


def test_channels_padded_with_zeros_are_not_cut_at_their_reader(net):
    model = net(
        lambda m, x: pooled(m, m.b(F.pad(m.a(x), (0, 0, 0, 0, 1, 2)))), a=conv(3, 4), b=conv(7, 2), head=head(2)
    )
    graph = channel_graph(model, (X,))
    assert classes(graph, "b.weight", 1)[1:5] == classes(graph, "a.weight")
    assert is_free(graph, "b.weight", 1) == [False] + [True] * 4 + [False] * 2


KEPT = {
    "LayerNorm": (
        lambda m, x: m.head(m.extra(m.a(x).mean((2, 3)))),
        nn.LayerNorm(4),
        "layer_norm: a statistic over channels (at extra)",
    ),
    "GroupNorm": (
        lambda m, x: pooled(m, m.extra(m.a(x))),
        nn.GroupNorm(2, 4),
        "group_norm: a statistic over channels (at extra)",
    ),
    "softmax": (
        lambda m, x: m.head(torch.softmax(m.a(x).mean((2, 3)), 1)),
        nn.Identity(),
        "softmax: a statistic over channels (at softmax)",
    ),
    "mean over channels": (
        lambda m, x: pooled(m, (y := m.a(x)) * y.mean(1, keepdim=True)),
        nn.Identity(),
        "mean over channels (at mean)",
    ),
    "unknown op": (
        lambda m, x: m.head(torch.cumsum(m.a(x).mean((2, 3)), 1)),
        nn.Identity(),
        "cumsum has no rule (at cumsum)",
    ),
    "a parameter with two dimensions of channels": (
        lambda m, x: m.head((m.a(x).mean((2, 3))[:, :, None] + m.a(x).mean((2, 3))[:, None] * m.extra.weight).sum(1)),
        nn.Linear(4, 4),
        "a parameter enters mul along several dimensions (at mul)",
    ),
    "matmul": (
        lambda m, x: m.head(m.a(x).mean((2, 3)) @ m.extra.weight.T),
        nn.Linear(4, 4),
        "matmul: a product with a parameter (at matmul)",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_no_rule_explains_is_kept_with_reason_and_place(net, case):
    run, extra, reason = KEPT[case]
    graph = channel_graph(net(run, a=conv(3, 4), extra=extra, head=head(4)), (X,))
    assert is_free(graph, "a.weight") == [False] * 4
    assert reason in reasons(graph, "a.weight")


def test_a_one_channel_attention_map_is_kept_and_ties_nothing(net):
    def run(m, x):
        y = m.a(x)
        return pooled(m, y * torch.sigmoid(m.map(y)))

    graph = channel_graph(net(run, a=conv(3, 4), map=conv(4, 1, 7, padding=3), head=head(4)), (X,))
    assert is_free(graph, "a.weight") == [True] * 4
    assert len(set(classes(graph, "a.weight"))) == 4
    assert reasons(graph, "map.weight") == {"broadcast over channels by mul (at mul)"}


def test_parameters_of_other_modules_are_channels_like_any(net):
    class Scaled(nn.Conv2d):
        pass

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
            self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))

    model = net(
        lambda m, x: pooled(m, F.conv2d(m.a(x) * m.plain.scale, m.plain.weight)),
        a=Scaled(3, 4, 1),
        plain=Plain(),
        head=head(4),
    )
    graph = channel_graph(model, (X,))
    for name in ("a.weight", "plain.weight"):
        assert is_free(graph, name) == [True] * 4
    assert graph.classes.parameters["plain.scale"][1].tolist() == classes(graph, "a.weight")
    assert all(consumer.shift is None for consumer in graph.consumers if consumer.weight == "plain.weight")


LAYER_SCALES = {
    "layer scale": ((4, 1, 1), lambda y, p: y * p),
    "flat, unsqueezed": ((4,), lambda y, p: y * p[None, :, None, None]),
    "squared": ((4,), lambda y, p: y + (p * p).reshape(1, -1, 1, 1)),
    "of an image with one channel": ((1, 4, 1, 1), lambda y, p: y[:, :1] * p),
}


@pytest.mark.parametrize("case", LAYER_SCALES)
def test_parameters_in_arithmetic_belong_to_the_channels_they_meet(net, case):
    shape, use = LAYER_SCALES[case]
    model = net(lambda m, x: pooled(m, m.b(use(m.a(x), m.p))), a=conv(3, 4), b=conv(4, 4), head=head(4))
    model.p = nn.Parameter(torch.randn(shape))
    graph = channel_graph(model, (X,))
    (own,) = graph.classes.parameters["p"].values()
    assert own.tolist() == graph.classes.parameters["b.weight"][1].tolist()
    assert bool(graph.free()[own].all())


def test_a_parameter_along_space_is_no_channel(net):
    """A position embedding: the height along which it varies is none of channels."""
    model = net(lambda m, x: pooled(m, m.b(m.a(x) + m.p)), a=conv(3, 4), b=conv(4, 4), head=head(4))
    model.p = nn.Parameter(torch.randn(1, 4, 8, 1))
    graph = channel_graph(model, (torch.randn(1, 3, 8, 8),))
    assert list(graph.classes.parameters["p"]) == [1]
    assert is_free(graph, "a.weight") == [True] * 4
    assert len(set(classes(graph, "a.weight"))) == 4


def test_groups_are_read_one_by_one(net):
    model = net(lambda m, x: pooled(m, m.b(m.a(x))), a=conv(3, 8), b=nn.Conv2d(8, 6, 3, groups=2), head=head(6))
    graph = channel_graph(model, (X,))
    assert graph.classes.parameters["b.weight"][1].tolist() == classes(graph, "a.weight")
    inputs, outputs = graph.partitions
    assert {tuple(inputs.shape), tuple(outputs.shape)} == {(2, 4), (2, 3)}


def test_a_tensor_that_is_no_parameter_is_kept(net):
    shift = torch.randn(4)
    model = net(lambda m, x: pooled(m, F.conv2d(x, m.a.weight, m.shift)), a=conv(3, 4, bias=False), head=head(4))
    model.shift = shift
    graph = channel_graph(model, (X,))
    assert any("is no parameter or buffer of a module" in why for why in reasons(graph, "a.weight"))
    assert graph.consumers[0].shift is None


def test_computed_weights_are_kept(net):
    model = net(
        lambda m, x: pooled(m, m.b(m.a(x))), a=conv(3, 4), b=parametrizations.weight_norm(conv(4, 4)), head=head(4)
    )
    graph = channel_graph(model, (X,))
    assert any("the weight of this convolution is computed (at b)" in why for why in reasons(graph, "a.weight"))


def test_a_computed_batch_norm_scale_belongs_to_the_channel(net):
    def run(m, x):
        bn = m.bn
        return pooled(m, F.batch_norm(m.a(x), bn.running_mean, bn.running_var, bn.weight * 2, bn.bias))

    graph = channel_graph(net(run, a=conv(3, 4), bn=nn.BatchNorm2d(4), head=head(4)), (X,))
    assert classes(graph, "bn.weight") == classes(graph, "a.weight")
    assert is_free(graph, "a.weight") == [True] * 4


@pytest.mark.parametrize(
    "use",
    [
        lambda y, p: y + F.pad(p, (1, 1)),
        lambda y, p: y + F.interpolate(p, size=(8, 8)),
        lambda y, p: y * p.flatten()[:1],
        lambda y, p: y.view(torch.int32).float(),
    ],
    ids=["pad", "interpolate", "flatten", "view as another dtype"],
)
def test_parameters_and_bits_that_move_are_no_accident(net, use):
    model = net(
        lambda m, x: pooled(m, use(m.a(x), m.p)), a=conv(3, 4), p=nn.Parameter(torch.randn(1, 1, 8, 6)), head=head(4)
    )
    assert channel_graph(model, (X,)).classes.count > 0


SHIFTS = {
    "own bias": (lambda m, x: m.b(x), True, ("bias", "b.bias")),
    "BatchNorm": (lambda m, x: m.bn(m.b(x)), False, ("mean", "bn.running_mean")),
    "new bias": (lambda m, x: m.b(x).relu(), False, ("new bias", "b.bias")),
    "two readers": (lambda m, x: (lambda y: m.bn(y) + y)(m.b(x)), False, ("new bias", "b.bias")),
    "BatchNorm used twice": (lambda m, x: m.bn(m.bn(m.b(x))), False, ("new bias", "b.bias")),
    "functional": (lambda m, x: F.conv2d(x, m.b.weight), False, None),
    "computed bias": (lambda m, x: F.conv2d(x, m.b.weight, m.b.bias * 2), True, None),
}


@pytest.mark.parametrize("case", SHIFTS)
def test_where_a_constant_can_go_behind_a_layer(net, case):
    run, bias, shift = SHIFTS[case]
    model = net(
        lambda m, x: pooled(m, run(m, m.a(x))),
        a=conv(3, 4),
        b=conv(4, 4, bias=bias),
        bn=nn.BatchNorm2d(4),
        head=head(4),
    )
    consumers = {c.weight: c for c in channel_graph(model, (X,)).consumers}
    assert consumers["b.weight"].shift == shift
