"""Every rule of exact removal: what leaves, where its constant goes, and that the function stays at two sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.surgery.layers import ConstantLayer
from small_networks import conv, pooled, width

SMALL, LARGE = (torch.randn(2, 3, size, size + 1, dtype=torch.float64) for size in (11, 16))


def brightness(x):
    """What a network with a dead end adds to its output, so that this still depends on the input."""
    return x.mean((1, 2, 3))[:, None]


def two_layers(net, randomise_, second, *, between=F.relu, bias=True, **layers):
    """conv a -> relu -> ``second`` -> relu -> average -> linear."""
    model = net(
        lambda m, x: pooled(m, F.relu(second(m, between(m.a(x))))) + brightness(x),
        a=conv(3, 6),
        **{"b": conv(6, 5, bias=bias), "head": nn.Linear(5, 2), **layers},
    )
    return randomise_(model)


def test_a_zero_channel_is_cut_and_nothing_is_folded(net, randomise_, kill_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y), b=conv(6, 5, padding=1))
    kill_(model.a, [1, 4])
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 4
    assert result.plan.folds == ()
    assert torch.equal(result.model.a.weight, model.a.weight[[0, 2, 3, 5]])
    assert torch.equal(result.model.b.weight, model.b.weight[:, [0, 2, 3, 5]])
    assert (result.model.a.out_channels, result.model.b.in_channels) == (4, 4)


def test_a_channel_below_zero_is_zero_behind_a_relu(net, randomise_, kill_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y), b=conv(6, 5, padding=1))
    kill_(model.a, [1, 4], -0.5)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 4
    assert result.plan.folds == ()


def test_constants_fold_into_the_bias(net, randomise_, kill_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y))
    kill_(model.a, [1, 4], 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.plan.folds == ({"weight": "b.weight", "into": "b.bias", "inputs": [1, 4]},)
    expected = model.b.bias + 0.7 * model.b.weight[:, [1, 4]].sum((1, 2, 3))
    torch.testing.assert_close(result.model.b.bias, expected, rtol=1e-14, atol=1e-14)


def test_constants_fold_into_the_mean_of_the_batch_norm_behind(net, randomise_, kill_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.bn(m.b(y)), bias=False, bn=nn.BatchNorm2d(5))
    kill_(model.a, [0, 2], 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert [fold["into"] for fold in result.plan.folds] == ["bn.running_mean"]
    expected = model.bn.running_mean - 0.7 * model.b.weight[:, [0, 2]].sum((1, 2, 3))
    torch.testing.assert_close(result.model.bn.running_mean, expected.detach(), rtol=1e-14, atol=1e-14)
    assert result.model.b.bias is None


@pytest.mark.parametrize(
    "second",
    [lambda m, y: m.b(y), lambda m, y: (lambda z: m.bn(z) + z)(m.b(y)), lambda m, y: m.bn(m.bn(m.b(y)))],
    ids=["no BatchNorm", "BatchNorm and another reader", "BatchNorm used twice"],
)
def test_constants_fold_into_a_new_bias_where_no_mean_is_free(net, randomise_, kill_, compact_exactly, second):
    model = two_layers(net, randomise_, second, bias=False, bn=nn.BatchNorm2d(5))
    kill_(model.a, [0, 2], 0.7)
    kill_(model.b, [3])
    result = compact_exactly(model, SMALL, LARGE)
    assert result.plan.new_biases == ("b.bias",)
    assert result.model.b.bias.requires_grad
    assert width(result, "a") == 4
    shift = 0.7 * model.b.weight[:, [0, 2]].sum((1, 2, 3))
    rows = [row for row in range(5) if result.model.b.weight.shape[0] == 5 or row != 3]
    torch.testing.assert_close(result.model.b.bias, shift[rows], rtol=1e-14, atol=1e-14)


def test_constants_fold_into_a_linear_layer_through_flatten(net, randomise_, kill_, compact_exactly):
    model = randomise_(net(lambda m, x: m.head(F.relu(m.a(x)).flatten(1)), a=conv(3, 6), head=nn.Linear(6 * 9 * 10, 2)))
    kill_(model.a, [1, 2], 0.4)
    result = compact_exactly(model, SMALL)
    assert result.model.head.in_features == 4 * 9 * 10


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": 2, "dilation": 2},
        {"padding": (0, 1)},
        {"padding": "same"},
    ],
    ids=str,
)
def test_a_padded_reader_keeps_one_carrier(net, randomise_, kill_, compact_exactly, options):
    model = two_layers(net, randomise_, lambda m, y: m.b(y), b=conv(6, 5, **options))
    kill_(model.a, [1, 3, 4], 0.5)
    model.a.bias.data[3] = 2.0
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 4
    assert result.plan.parameters["a.weight"].indices[0] == [0, 2, 3, 5]  # the largest constant carries
    carried = model.b.weight[:, 3] + 0.25 * model.b.weight[:, [1, 4]].sum(1)
    torch.testing.assert_close(result.model.b.weight[:, 2], carried, rtol=1e-14, atol=1e-14)
    assert result.report.kept == {"a": "1 channel: constant 2, carried for the padded b"}


def test_a_constant_that_stays_anyway_carries(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = F.relu(m.a(x))
        return torch.cat((pooled(m, F.relu(m.b(y))), y[:, :1].flatten(1)), 1)

    model = randomise_(net(run, a=conv(3, 6), b=conv(6, 5, padding=1), head=nn.Linear(5, 2)))
    kill_(model.a, [0, 1, 4], 0.5)
    result = compact_exactly(model, SMALL)
    assert width(result, "a") == 4
    assert result.plan.folds[0]["carrier"] == 0


def test_an_unpadded_strided_dilated_reader_folds_into_its_bias(net, randomise_, kill_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y), b=conv(6, 5, stride=2, dilation=2))
    kill_(model.a, [1, 4], 0.7)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 4


def test_a_channel_that_every_reader_weighs_with_zero_is_dead(net, randomise_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y))
    model.b.weight.data[:, [0, 5]] = 0
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 4


def test_death_goes_backwards_through_layers(net, randomise_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y))
    model.head.weight.data[:, [0, 1]] = 0
    model.b.weight.data[2:, 3] = 0  # channel 3 of a is read by the outputs 0 and 1 of b alone
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b")) == (5, 3)


@pytest.mark.parametrize("value", [0.0, 0.6])
@pytest.mark.parametrize("padding", [0, 1])
def test_the_last_channel_of_a_layer_stays(net, randomise_, kill_, compact_exactly, value, padding):
    model = two_layers(net, randomise_, lambda m, y: m.b(y), b=conv(6, 5, padding=padding))
    kill_(model.a, list(range(6)), value)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 1
    assert len(result.report.kept["a"]) > 0
    assert isinstance(result.model.a, ConstantLayer)
    torch.testing.assert_close(result.model.a.bias, torch.full((1,), value, dtype=torch.float64))


def test_layers_of_a_dead_path_are_constants(net, randomise_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y), b=conv(6, 5, padding=1))
    model.head.weight.data.zero_()
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b"), width(result, "head")) == (1, 1, 2)
    assert result.report.constant_layers == result.plan.constant_layers == ("a", "b", "head")
    assert result.report.macs_after == 0
    torch.testing.assert_close(result.model.head.bias, model.head.bias)


@pytest.mark.parametrize(
    "layer",
    [
        conv(4, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        conv(4, 5, (3, 2), padding="same", dilation=2),
        conv(4, 5, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 5, 3, stride=2),
        nn.Conv3d(4, 5, 3, stride=2, padding=1),
        nn.Linear(4, 5),
    ],
    ids=str,
)
def test_a_constant_has_the_shape_of_the_layer_it_stands_for(layer):
    shape = {nn.Linear: (2, 7, 4), nn.Conv1d: (2, 4, 9), nn.Conv3d: (2, 4, 6, 7, 8)}.get(type(layer), (2, 4, 11, 8))
    constant = ConstantLayer(layer)
    with torch.no_grad():
        constant.bias.copy_(layer.bias)
        layer.weight.zero_()
        x = torch.randn(shape)
        assert torch.equal(constant(x), layer(x))
        assert torch.equal(constant(x[0]), layer(x[0])) or layer.padding_mode == "circular"


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_dead_residual_branch_shrinks_to_one_channel(net, randomise_, compact_exactly, shift):
    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, F.relu(y + m.bn(m.c(F.relu(m.b(y))))))

    model = randomise_(
        net(
            run,
            a=conv(3, 4),
            b=conv(4, 8, padding=1),
            c=conv(8, 4, padding=1),
            bn=nn.BatchNorm2d(4),
            head=nn.Linear(4, 2),
        )
    )
    model.c.weight.data.zero_()
    model.bn.bias.data.fill_(shift)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b"), width(result, "c")) == (4, 1, 4)
    assert result.report.constant_layers == ("b", "c")
    assert result.report.macs_after == 2 * (4 * 27 * 90 + 4 * 2)  # a and head for a batch of two


def test_a_residual_sum_of_constants_is_a_constant(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, F.relu(m.b(y + m.c(y))))

    model = randomise_(net(run, a=conv(3, 4), c=conv(4, 4, 1), b=conv(4, 5), head=nn.Linear(5, 2)))
    kill_(model.a, [1, 2], 0.5)
    kill_(model.c, [1, 3], -0.2)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "c")) == (3, 3)
    assert [fold["inputs"] for fold in result.plan.folds] == [[1], [1]]


def test_a_carrier_that_stays_reads_constants_that_nobody_read_before(net, randomise_, kill_, compact_exactly):
    """All outputs of b are constant because all its inputs are; the one that must carry still needs them."""
    model = randomise_(
        net(
            lambda m, x: pooled(m, F.relu(m.c(torch.sigmoid(m.b(torch.sigmoid(m.a(x))))))) + brightness(x),
            a=conv(3, 4),
            b=conv(4, 5),
            c=conv(5, 6, padding=1),
            head=nn.Linear(6, 2),
        )
    )
    kill_(model.a, list(range(4)), 0.5)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b")) == (1, 1)
    assert {fold["into"] for fold in result.plan.folds} == {"b.bias", "c.weight"}


def test_an_output_kept_for_its_readers_may_read_anything(net, randomise_, compact_exactly):
    """b is silenced by its BatchNorm alone: one output stays, and what it reads may leave without care."""
    model = two_layers(net, randomise_, lambda m, y: m.bn(m.b(y)), bn=nn.BatchNorm2d(5))
    model.bn.weight.data.zero_()
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b")) == (1, 1)


@pytest.mark.parametrize("shift", [0.0, 0.4])
@pytest.mark.parametrize("padding", [0, 1])
def test_depthwise_channels_leave_with_their_input(net, randomise_, kill_, compact_exactly, shift, padding):
    model = two_layers(
        net, randomise_, lambda m, y: m.b(F.relu6(m.dw(y))), dw=conv(6, 12, groups=6, padding=padding), b=conv(12, 5, 1)
    )
    kill_(model.a, [1, 4], shift)
    kill_(model.dw, [2, 3, 8, 9], shift)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "dw")) == (4, 8)
    assert (result.model.dw.groups, result.model.dw.in_channels, result.model.dw.out_channels) == (4, 4, 8)


def test_prelu_slopes_and_buffers_leave_too(net, randomise_, kill_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(m.act(m.bn(y))), bn=nn.BatchNorm2d(6), act=nn.PReLU(6))
    kill_(model.bn, [1, 4], -0.3)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.model.act.num_parameters == result.model.bn.num_features == 4
    assert result.model.bn.running_var.shape == (4,)
    assert width(result, "a") == 4
    assert [fold["inputs"] for fold in result.plan.folds] == [[1, 4]]


def test_dense_connections_and_pre_activation(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = m.a(x)
        y = torch.cat((y, m.b(F.relu(m.first(y)))), 1)
        return pooled(m, m.c(F.relu(m.second(y))))

    model = randomise_(
        net(
            run,
            a=conv(3, 4),
            first=nn.BatchNorm2d(4),
            b=conv(4, 3, padding=1),
            second=nn.BatchNorm2d(7),
            c=conv(7, 5),
            head=nn.Linear(5, 2),
        )
    )
    kill_(model.first, [1, 2])
    kill_(model.second, [1, 5])
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b")) == (3, 2)  # channel 2 is alive for the second reader


def test_squeeze_excite(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, m.b(y * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))))

    model = randomise_(
        net(run, a=conv(3, 6), down=conv(6, 4, 1), up=conv(4, 6, 1), b=conv(6, 5, padding=1), head=nn.Linear(5, 2))
    )
    kill_(model.a, [1, 2])
    kill_(model.down, [0, 3], 0.4)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "up"), width(result, "down")) == (4, 4, 2)


def test_what_requires_no_gradient_still_does_not(net, randomise_, kill_, compact_exactly):
    model = two_layers(net, randomise_, lambda m, y: m.b(y), bias=False)
    kill_(model.a, [1, 4], 0.7)
    model.a.weight.requires_grad_(False)
    model.b.requires_grad_(False)
    model.train()
    model.a.eval()
    result = compact_exactly(model, SMALL, LARGE)
    frozen = {name for name, parameter in result.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"a.weight", "b.weight", "b.bias"}
    assert not result.model.a.training


def test_one_dimensional_networks(net, randomise_, kill_, compact_exactly):
    model = randomise_(
        net(
            lambda m, x: m.head(F.relu(m.b(F.relu(m.bn(m.a(x))))).mean(2)),
            a=nn.Conv1d(3, 6, 3),
            bn=nn.BatchNorm1d(6),
            b=nn.Conv1d(6, 5, 3, padding=1),
            head=nn.Linear(5, 2),
        )
    )
    kill_(model.bn, [0, 1, 2], 0.3)
    result = compact_exactly(model, SMALL[:, :, 0], LARGE[:, :, 0])
    assert width(result, "a") == 4
