"""Pitfalls of removal: what is dead, where its constant goes, and what must be told that it is gone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ConfigError, ModelError
from compress.graph import channel_graph
from compress.surgery import compact, load, save_weights
from small_networks import conv, width

GENERATOR = torch.Generator().manual_seed(0)
SMALL, LARGE = (torch.randn(2, 3, size, size + 1, dtype=torch.float64, generator=GENERATOR) for size in (11, 16))
DEAD = [1, 5]


def pooled(m, y):
    return m.head(F.relu(y).mean((2, 3)))


def network(net, randomise_, run, **layers):
    """Layers ``a`` (3 -> 8), ``b`` (8 -> 5) and the linear ``head``, and others, around ``run``."""
    torch.manual_seed(0)
    return randomise_(net(run, **{"a": conv(3, 8), "b": conv(8, 5), "head": nn.Linear(5, 2), **layers}))


def agree(model, small, *inputs):
    with torch.no_grad():
        for x in inputs:
            torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


# --- who needs a constant -------------------------------------------------------------------------------------------


def test_only_what_reaches_a_mixing_layer_must_be_constant(net, randomise_, kill_, compact_exactly):
    """Alive before its BatchNorm, its PReLU and its depthwise convolution, constant behind them: it may leave."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.bn(m.act(m.dw(m.a(x))))))),
        act=nn.PReLU(8), dw=conv(8, 8, groups=8), bn=nn.BatchNorm2d(8),
    )  # fmt: skip
    kill_(model.bn, DEAD, 0.4)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "dw"), result.model.act.num_parameters) == (6, 6, 6)
    assert result.plan.folds == ({"weight": "b.weight", "into": "b.bias", "inputs": DEAD},)


def test_channels_that_every_reader_weighs_with_zero_are_dead_through_everything_before(
    net, randomise_, compact_exactly
):
    """Backward: conv, BatchNorm, depthwise and pooling in front of zero weights serve nobody."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.b(F.max_pool2d(F.relu(m.dw(F.relu(m.bn(m.a(x))))), 2))),
        dw=conv(8, 8, groups=8, padding=1), bn=nn.BatchNorm2d(8),
    )  # fmt: skip
    model.b.weight.data[:, DEAD] = 0
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "dw"), result.model.bn.num_features) == (6, 6, 6)
    assert result.plan.folds == ()


def test_one_reader_with_weights_is_enough_to_stay(net, randomise_, compact_exactly):
    """Zero weights in one of two readers, or in one of two uses of it, kill nothing."""
    model = network(net, randomise_, lambda m, x: (lambda y: pooled(m, m.b(y) + m.c(y)))(F.relu(m.a(x))), c=conv(8, 5))
    model.b.weight.data[:, [1, 5]] = 0
    model.c.weight.data[:, [5, 6]] = 0
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 7


def test_the_output_itself_is_a_reader(net, randomise_, compact_exactly):
    """A channel that no layer reads may still be returned."""
    model = network(net, randomise_, lambda m, x: F.relu(m.a(x)))
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 8


def test_a_dead_class_spans_everything_that_is_added_to_it(net, randomise_, kill_, compact_exactly):
    """Dead in one summand, alive in the other: alive. Dead in both: gone from both."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x) + m.c(x)))), c=conv(3, 8))
    kill_(model.a, [1, 2, 5])
    kill_(model.c, [1, 4, 5])
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "c")) == (6, 6)


# --- carriers -------------------------------------------------------------------------------------------------------


def test_the_carrier_is_the_channel_with_the_largest_constant_of_either_sign(net, randomise_, kill_, compact_exactly):
    """A ratio above one would lose digits: the smallest constant is no carrier."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(torch.tanh(m.a(x)))), b=conv(8, 5, padding=1))
    for channel, value in ((1, 1e-9), (3, -0.9), (5, 0.5), (6, 0.0)):
        kill_(model.a, [channel], value)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.plan.parameters["a.weight"].indices[0] == [0, 2, 3, 4, 7]
    ratios = torch.tanh(torch.tensor([1e-9, 0.5], dtype=torch.float64)) / torch.tanh(
        torch.tensor(-0.9, dtype=torch.float64)
    )
    expected = model.b.weight[:, 3] + (model.b.weight[:, [1, 5]] * ratios.view(1, 2, 1, 1)).sum(1)
    torch.testing.assert_close(result.model.b.weight[:, 2], expected, rtol=1e-14, atol=1e-14)


def test_a_constant_that_must_stay_carries_the_others_at_no_price(net, randomise_, kill_, compact_exactly):
    """Channel 0 is returned too, so it stays: channels 1 and 5 ride on it."""

    def run(m, x):
        y = F.relu(m.a(x))
        return torch.cat((pooled(m, m.b(y)), y[:, :1].mean((2, 3))), 1)

    model = network(net, randomise_, run, b=conv(8, 5, padding=1))
    kill_(model.a, [0], 0.2)
    kill_(model.a, DEAD, 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 6
    assert [fold["carrier"] for fold in result.plan.folds] == [0]


def test_each_padded_reader_needs_a_carrier_of_its_own_channels(net, randomise_, kill_, compact_exactly):
    """Two padded readers of two streams: two carriers; two readers of one stream may share one."""

    def run(m, x):
        y, z = F.relu(m.a(x)), F.relu(m.c(x))
        return pooled(m, m.b(y) + m.d(z) + m.e(y))

    same = {"padding": 1}
    model = network(
        net, randomise_, run, b=conv(8, 5, **same), c=conv(3, 8), d=conv(8, 5, **same), e=conv(8, 5, **same)
    )
    kill_(model.a, [1, 2, 5], 0.7)
    kill_(model.c, [0, 3], 0.4)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "c")) == (6, 7)


def test_a_padded_and_an_unpadded_reader_of_one_stream(net, randomise_, kill_, compact_exactly):
    """One has a carrier, the other a bias: the carrier stays for the second too, and must not be counted twice."""
    model = network(
        net,
        randomise_,
        lambda m, x: (lambda y: pooled(m, m.b(y)[:, :, 1:-1, 1:-1] + m.c(y)))(F.relu(m.a(x))),
        b=conv(8, 5, padding=1),
        c=conv(8, 5),
    )
    kill_(model.a, [1, 2, 5], 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 6
    expected = model.c.bias + 0.7 * model.c.weight[:, [2, 5]].sum((1, 2, 3))
    torch.testing.assert_close(result.model.c.bias, expected, rtol=1e-13, atol=1e-13)


def test_a_single_constant_for_a_padded_reader_can_only_carry_itself(net, randomise_, kill_, compact_exactly):
    """Nothing to gain: it stays, its weights as they were."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))), b=conv(8, 5, padding=1))
    kill_(model.a, [5], 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 8
    assert torch.equal(result.model.b.weight, model.b.weight)
    assert "carried for the padded b" in result.report.kept["a"]


def test_a_padded_grouped_reader_needs_a_carrier_in_each_group(net, randomise_, kill_, compact_exactly):
    """Two constants a group: one of each leaves."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))), b=conv(8, 6, padding=1, groups=2),
        head=nn.Linear(6, 2),
    )  # fmt: skip
    for channel, value in ((0, 0.3), (2, 0.9), (5, 0.8), (6, 0.2)):
        kill_(model.a, [channel], value)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.plan.parameters["a.weight"].indices[0] == [1, 2, 3, 4, 5, 7]
    first = model.b.weight[:3, 2] + 0.3 / 0.9 * model.b.weight[:3, 0]
    torch.testing.assert_close(result.model.b.weight[:3, 1], first, rtol=1e-14, atol=1e-14)
    second = model.b.weight[3:, 1] + 0.2 / 0.8 * model.b.weight[3:, 2]
    torch.testing.assert_close(result.model.b.weight[3:, 1], second, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1}], ids=str)
def test_a_transposed_reader_of_constants_keeps_one_carrier(net, randomise_, kill_, compact_exactly, options):
    """How many taps an output sees depends on its place, also without padding: no bias can stand in."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.up(F.relu(m.a(x)))), up=nn.ConvTranspose2d(8, 5, 3, **options)
    )
    for channel, value in ((1, 0.3), (4, 0.9), (6, 0.2)):
        kill_(model.a, [channel], value)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.plan.parameters["a.weight"].indices[0] == [0, 2, 3, 4, 5, 7]
    expected = model.up.weight[4] + (0.3 * model.up.weight[1] + 0.2 * model.up.weight[6]) / 0.9
    torch.testing.assert_close(result.model.up.weight[3], expected, rtol=1e-13, atol=1e-13)


# --- where a fold goes ----------------------------------------------------------------------------------------------

PLACES = {
    "own bias": (lambda m, z: z, {"b": conv(8, 5)}, "b.bias"),
    "mean of the only BatchNorm": (lambda m, z: m.bn(z), {"b": conv(8, 5, bias=False)}, "bn.running_mean"),
    "own bias in front of a BatchNorm": (lambda m, z: m.bn(z), {"b": conv(8, 5)}, "b.bias"),
    "BatchNorm behind a ReLU": (lambda m, z: m.bn(F.relu(z)), {"b": conv(8, 5, bias=False)}, "b.bias"),
    "BatchNorm beside another reader": (lambda m, z: m.bn(z) + z, {"b": conv(8, 5, bias=False)}, "b.bias"),
    "BatchNorm used twice": (lambda m, z: m.bn(m.bn(z)), {"b": conv(8, 5, bias=False)}, "b.bias"),
    "BatchNorm of two layers": (lambda m, z: m.bn(z) + m.bn(z.flip(2)), {"b": conv(8, 5, bias=False)}, "b.bias"),
    "BatchNorm that reads another first": (lambda m, z: m.bn(z * 2), {"b": conv(8, 5, bias=False)}, "b.bias"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_fold_goes_where_nobody_else_sees_it(net, randomise_, kill_, compact_exactly, case):
    """Own bias; else the mean of the BatchNorm that alone reads it; else a new bias, which the plan records."""
    behind, layers, into = PLACES[case]
    model = network(
        net,
        randomise_,
        lambda m, x: pooled(m, behind(m, m.b(F.relu(m.a(x))))),
        bn=nn.BatchNorm2d(5),
        **copy.deepcopy(layers),
    )
    kill_(model.a, DEAD, 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert [fold["into"] for fold in result.plan.folds] == [into]
    new = () if into in dict(model.named_parameters()) or into == "bn.running_mean" else (into,)
    assert result.plan.new_biases == new
    assert set(result.model.state_dict()) - set(model.state_dict()) == set(new)


def test_a_batch_norm_that_is_read_elsewhere_takes_no_fold(net, randomise_, kill_, compact_exactly):
    """Its running mean enters the output by itself: changing it would change that."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.bn(m.b(F.relu(m.a(x))))) + m.bn.running_mean.sum(),
        b=conv(8, 5, bias=False), bn=nn.BatchNorm2d(5),
    )  # fmt: skip
    kill_(model.a, DEAD, 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert torch.equal(result.model.bn.running_mean, model.bn.running_mean)


def test_a_bias_that_is_read_elsewhere_takes_no_fold(net, randomise_, kill_, compact_exactly):
    """``forward`` looks at the bias by itself."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))) + m.b.bias.sum())
    kill_(model.a, DEAD, 0.7)
    result = compact_exactly(model, SMALL, LARGE)
    assert torch.equal(result.model.b.bias, model.b.bias)


def test_a_frozen_layer_gets_a_frozen_new_bias(net, randomise_, kill_, compact_exactly):
    """Whoever froze a layer will not find it training again."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))), b=conv(8, 5, bias=False))
    kill_(model.a, DEAD, 0.7)
    model.b.requires_grad_(False)
    model.a.bias.requires_grad_(False)
    result = compact_exactly(model, SMALL, LARGE)
    frozen = {name for name, parameter in result.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"a.bias", "b.weight", "b.bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 1])
def test_folds_are_computed_in_double_and_rounded_once(net, randomise_, kill_, dtype, padding):
    """To the last bit: a sum in the network's own precision would be off."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))), b=conv(8, 5, padding=padding))
    for channel, value in ((1, 0.3), (2, 0.9), (4, 0.11), (6, 0.7)):
        kill_(model.a, [channel], value)
    model.to(dtype)
    small = compact(model, (SMALL.to(dtype),)).model
    weight, bias, c = model.b.weight.double(), model.b.bias.double(), model.a.bias.double()
    if padding:
        expected = weight[:, 2] + sum(c[j] / c[2] * weight[:, j] for j in (1, 4, 6))
        assert torch.equal(small.b.weight[:, 1], expected.to(dtype))
    else:
        expected = bias + sum(c[j] * weight[:, j].sum((1, 2)) for j in (1, 2, 4, 6))
        assert torch.equal(small.b.bias, expected.to(dtype))


# --- shared and tied ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("second", [0.5, 0.8], ids=["same constant", "another constant"])
def test_a_shared_layer_is_folded_once_and_only_for_equal_constants(
    net, randomise_, kill_, compact_exactly, padding, second
):
    """Two uses of one weight: the fold counts for both, so the constants must be the same in both."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, F.relu(m.b(F.relu(m.a(x)))) + m.b(F.relu(m.c(x)))),
        b=conv(8, 5, padding=padding), c=conv(3, 8),
    )  # fmt: skip
    kill_(model.a, [1, 3, 5], 0.5)
    kill_(model.c, [1, 3, 5], second)
    kill_(model.a, [7])
    kill_(model.c, [7])
    result = compact_exactly(model, SMALL, LARGE)
    expected = 7 if second != 0.5 else 5 if padding else 4
    # without padding one constant of two kinds could not be folded; a carrier with the same ratio at each use could
    assert width(result, "a") == width(result, "c") == expected


def test_a_shared_layer_that_pads_at_one_use_only(net, randomise_, kill_, compact_exactly):
    """As a module it does not pad, by function with its weight it does: the fold must hold for both."""

    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, m.b(y)) + pooled(m, F.conv2d(y, m.b.weight, m.b.bias, padding=1))

    model = network(net, randomise_, run)
    kill_(model.a, [1, 2, 5], 0.5)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 6


def test_one_module_under_two_names_is_cut_once(net, randomise_, kill_, compact_exactly):
    """It has two state names for one tensor."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.alias(x)))))
    model.alias = model.a
    kill_(model.a, DEAD)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.model.alias is result.model.a
    assert result.model.a.weight.shape[0] == 6


def test_one_batch_norm_of_two_streams_couples_them(net, randomise_, kill_, compact_exactly):
    """Dead in one stream alone: its statistics and scale still serve the other."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.bn(m.a(x)))) + m.c2(F.relu(m.bn(m.c(x))))),
        c=conv(3, 8), c2=conv(8, 5), bn=nn.BatchNorm2d(8),
    )  # fmt: skip
    kill_(model.a, [1, 2])
    kill_(model.c, [2, 4])
    kill_(model.bn, [6])
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == width(result, "c") == result.model.bn.num_features
    assert width(result, "a") <= 7


def test_tied_weights_of_two_layers_with_their_own_biases(net, randomise_, kill_, compact_exactly):
    """One weight, two biases: each takes the fold of its own use."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x))) + m.c(F.relu(m.a(x)) * 2)), c=conv(8, 5)
    )
    model.c.weight = model.b.weight
    kill_(model.a, DEAD, 0.5)
    kill_(model.a, [7])
    result = compact_exactly(model, SMALL, LARGE)
    assert result.model.c.weight is result.model.b.weight
    assert width(result, "a") in (5, 7)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_weight_tied_to_a_transposed_convolution(net, randomise_, kill_, compact_exactly, bias, value):
    """An autoencoder: dimension 0 of the weight is written by the encoder and read by the decoder."""
    model = network(
        net, randomise_, lambda m, x: F.conv_transpose2d(F.relu(m.a(x)), m.a.weight, m.shift if bias else None)
    )
    model.shift = nn.Parameter(torch.rand(3, dtype=torch.float64))
    kill_(model.a, DEAD, value)
    assert width(compact_exactly(model, SMALL, LARGE), "a") in (6, 7, 8)


def test_a_weight_tied_to_its_own_transpose(net, randomise_, kill_, compact_exactly):
    """The same with linear layers."""
    model = network(
        net, randomise_, lambda m, x: F.linear(F.relu(m.fc(x.mean((2, 3)))), m.fc.weight.t()), fc=nn.Linear(3, 8)
    )
    kill_(model.fc, DEAD, 0.5)
    assert width(compact_exactly(model, SMALL, LARGE), "fc") in (6, 8)


class Tied(nn.Module):
    """A language model's head that is its embedding."""

    def __init__(self):
        super().__init__()
        self.words, self.fc = nn.Embedding(11, 8, dtype=torch.float64), nn.Linear(8, 8, dtype=torch.float64)
        self.head = nn.Linear(8, 11, bias=False, dtype=torch.float64)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(F.relu(self.fc(self.words(tokens))))


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_head_tied_to_its_embedding(kill_, compact_exactly, value):
    """Dimension 1 of the one weight is written by the embedding and read by the head."""
    torch.manual_seed(0)
    model = Tied().eval()
    model.words.weight.data[:, DEAD] = 0
    kill_(model.fc, DEAD, value)
    result = compact_exactly(model, torch.arange(6).view(2, 3), torch.arange(11).view(1, 11))
    assert result.model.head.weight is result.model.words.weight


READS_WEIGHTS = {
    "mean of a weight": lambda m, y: m.b(y) / m.b.weight.abs().mean(),
    "norm of a weight": lambda m, y: m.b(y) / m.b.weight.norm(),
    "norm of each filter": lambda m, y: m.b(y) / m.b.weight.flatten(1).norm(dim=1).view(1, -1, 1, 1),
    "largest weight": lambda m, y: m.b(y) / m.b.weight.amax(),
    "sum of another weight": lambda m, y: m.b(y) * m.a.weight.sum(),
    "a slice of the weight": lambda m, y: F.conv2d(y, m.b.weight[:, : y.shape[1]], m.b.bias),
    "the weight turned around": lambda m, y: m.b(y) + F.conv2d(y, m.b.weight.flip(2, 3), m.b.bias),
    "a fixed weight standardisation": lambda m, y: F.conv2d(y, m.b.weight - m.b.weight.mean((1, 2, 3), keepdim=True)),
    "a scaled weight": lambda m, y: F.conv2d(y, m.b.weight * m.b.weight[0].numel() ** -0.5, m.b.bias),
    "a sign of the weight": lambda m, y: F.conv2d(
        y, m.b.weight.sign() * m.b.weight.abs().mean((1, 2, 3), keepdim=True)
    ),
    "a sum of two weights": lambda m, y: F.conv2d(y, m.b.weight + m.c.weight, m.b.bias),
    "a weight made by a layer": lambda m, y: F.conv2d(y, m.make(y.mean((0, 2, 3)).view(1, -1)).view(5, 8, 1, 1)),
    "a filter for each image": lambda m, y: F.conv2d(
        y.flatten(0, 1)[None], m.make(y.mean((2, 3))).view(-1, 8, 1, 1), groups=y.shape[0]
    ).unflatten(1, (y.shape[0], -1))[0],
}


@pytest.mark.parametrize("case", READS_WEIGHTS)
def test_weights_that_forward_computes_with_hold_their_channels(net, randomise_, kill_, compact_exactly, case):
    """A cut weight has another mean and another norm: what it reads of dead channels counts there."""
    model = network(
        net,
        randomise_,
        lambda m, x: pooled(m, READS_WEIGHTS[case](m, F.relu(m.a(x)))),
        c=conv(8, 5),
        make=nn.Linear(8, 40),
    )
    kill_(model.a, DEAD)
    result = compact_exactly(model, SMALL)
    assert width(result, "a") in (6, 8)


# --- modules that are more, or less, than they seem -------------------------------------------------------------------


class BlurPool(nn.Module):
    """A fixed filter over each channel, held in a buffer."""

    def __init__(self, channels, expanded):
        super().__init__()
        kernel = torch.outer(k := torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4, k)
        self.register_buffer("kernel", kernel.expand(channels, 1, 3, 3).clone() if expanded else kernel)

    def forward(self, x):
        kernel = self.kernel.expand(x.shape[1], 1, 3, 3) if self.kernel.ndim == 2 else self.kernel
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


@pytest.mark.parametrize(
    "expanded", [pytest.param(True, id="a filter a channel"), pytest.param(False, id="one filter for all")]
)
def test_a_buffer_used_as_a_filter(net, randomise_, kill_, compact_exactly, expanded):
    """Cut with its channels or kept whole: never applied to other channels."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(m.blur(F.relu(m.a(x))))), blur=BlurPool(8, expanded))
    kill_(model.a, DEAD)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") in (6, 8)
    assert (result.model.blur.kernel.shape[0] == width(result, "a")) or not expanded


def test_a_buffer_filter_that_differs_by_channel_follows_its_channels(net, randomise_, kill_, compact_exactly):
    """Channel 7 must keep its own filter."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(m.blur(F.relu(m.a(x))))), blur=BlurPool(8, True))
    model.blur.kernel.mul_(torch.arange(1, 9, dtype=torch.float64).view(-1, 1, 1, 1))
    kill_(model.a, DEAD)
    result = compact_exactly(model, SMALL, LARGE)
    if width(result, "a") == 6:
        assert torch.equal(result.model.blur.kernel, model.blur.kernel[[0, 2, 3, 4, 6, 7]])


class Standardised(nn.Conv2d):
    """Weight standardisation: each filter is normalised over its inputs before use."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class EqualisedRate(nn.Conv2d):
    """A weight that is scaled by its fan-in at each call."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding) * (self.in_channels * 9) ** -0.5


class Masked(nn.Conv2d):
    """A weight with a mask in a buffer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", (torch.arange(self.weight.numel()).view_as(self.weight) % 3 > 0).double())

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


class Gained(nn.Conv2d):
    """A plain convolution with a gain for each output."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, dtype=torch.float64) + 0.5)

    def forward(self, x):
        return super().forward(x) * self.gain


class Blind(nn.Conv2d):
    """A convolution that drops its bias: no place for a fold."""

    def forward(self, x):
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


class Asymmetric(nn.Conv2d):
    """Padding of its own, from one side, as in TensorFlow."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Plain(nn.Conv2d):
    """A subclass that changes nothing."""


KINDS = (Standardised, EqualisedRate, Masked, Gained, Blind, Asymmetric, Plain)


@pytest.mark.parametrize("value", [0.0, 0.6])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_subclasses_of_convolutions_compute_in_their_own_way(net, randomise_, kill_, compact_exactly, kind, value):
    """Only what the traced operations do is believed, not the name of the base class."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))), a=kind(3, 8, 3), b=kind(8, 5, 3))
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight.normal_(0, 0.3)
            layer.bias.normal_(0, 0.3)
    kill_(model.a, DEAD, value)
    result = compact_exactly(model, SMALL, LARGE)
    assert type(result.model.b) is kind
    assert width(result, "a") in (6, 7, 8)


@pytest.mark.parametrize("kind", [Plain, Gained], ids=lambda k: k.__name__)
def test_a_harmless_subclass_is_cut(net, randomise_, kill_, compact_exactly, kind):
    """The type check stands behind it."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))), a=kind(3, 8, 3), b=kind(8, 5, 3))
    kill_(model.a, DEAD)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 6


class Lookalike(nn.Module):
    """A convolution of a user's own, with sizes under other names."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs, 3, 3, dtype=torch.float64) * 0.2)
        self.c = nn.Parameter(torch.randn(outputs, dtype=torch.float64))
        self.inputs = inputs

    def forward(self, x):
        return F.conv2d(x, self.w, self.c)


class Suspicious(Lookalike):
    """The same, but it checks its input's size against its own."""

    def forward(self, x):
        if x.shape[1] != self.inputs:
            raise ValueError(f"expected {self.inputs} channels, got {x.shape[1]}")
        return super().forward(x)


@pytest.mark.parametrize("value", [0.0, 0.6])
@pytest.mark.parametrize("kind", [Lookalike, Suspicious], ids=lambda k: k.__name__)
def test_modules_of_a_users_own_that_convolve(net, randomise_, kill_, compact_exactly, kind, value):
    """Sliced where their ``forward`` runs with fewer channels, kept where it objects."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))), a=kind(3, 8), b=kind(8, 5))
    model.a.w.data[DEAD], model.a.c.data[DEAD] = 0, value
    result = compact_exactly(model, SMALL, LARGE)
    assert result.model.a.w.shape[0] == result.model.b.w.shape[1]
    assert result.model.a.w.shape[0] == (8 if kind is Suspicious else 6)


def test_computed_weights_of_the_old_hooks(net, randomise_, kill_, compact_exactly):
    """``torch.nn.utils.spectral_norm`` recomputes the weight before each forward."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))))
    kill_(model.a, DEAD)
    nn.utils.spectral_norm(model.a)
    model.double().eval()(SMALL)
    result = compact(model, (SMALL,))
    agree(model, result.model, SMALL, LARGE)


def test_hooks_are_part_of_the_network(net, randomise_, kill_, compact_exactly):
    """A forward hook may change what a layer returns, a pre-hook what it reads."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))))
    model.a.register_forward_hook(lambda _m, _args, y: y + 0.5)
    model.b.register_forward_pre_hook(lambda _m, args: (args[0] * 2,))
    kill_(model.a, DEAD, 0.2)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 6
    expected = model.b.bias + 2 * (0.2 + 0.5) * model.b.weight[:, DEAD].sum((1, 2, 3))
    torch.testing.assert_close(result.model.b.bias, expected, rtol=1e-13, atol=1e-13)


def test_a_hook_that_records_is_neither_called_back_nor_lost(net, randomise_, kill_, compact_exactly):
    """Statistics hooks of a training loop."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))))
    seen = []
    model.a.register_forward_hook(lambda _m, _args, y: seen.append(tuple(y.shape)))
    model.a.register_full_backward_hook(lambda _m, _into, _out: None)
    kill_(model.a, DEAD)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 6
    assert len(seen) > 0


# --- layers without a living channel ----------------------------------------------------------------------------------


def dead_branch(net, randomise_, **layers):
    """A residual branch ``b`` beside the stream ``a``; all of ``b`` will be dead."""

    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, m.last(y + m.c(F.relu(m.b(y)))))

    own = {"b": conv(8, 6, padding=1), "c": conv(6, 8, padding=1), "last": conv(8, 5)}
    return network(net, randomise_, run, **{**own, **layers})


@pytest.mark.parametrize("value", [0.0, -1.0, 0.6])
@pytest.mark.parametrize("which", ["b", "c"])
def test_a_layer_without_a_living_channel_is_no_error(net, randomise_, kill_, compact_exactly, which, value):
    """One channel stays, or the layer becomes its constant."""
    model = dead_branch(net, randomise_)
    layer = model.get_submodule(which)
    kill_(layer, list(range(layer.out_channels)), value)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.report.params_after < result.report.params_before
    assert width(result, "b") <= 1


def test_a_dead_branch_without_biases(net, randomise_, kill_, compact_exactly):
    """Nothing to hold a constant, and none needed."""
    model = dead_branch(net, randomise_, b=conv(8, 6, padding=1, bias=False), c=conv(6, 8, padding=1, bias=False))
    kill_(model.b, list(range(6)))
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "b") <= 1
    assert width(result, "a") == 8


def test_a_dead_layer_whose_attributes_forward_reads(net, randomise_, kill_, compact_exactly):
    """What replaces it would have neither stride nor weight."""
    model = dead_branch(net, randomise_)
    run = model.run
    model.run = lambda m, x: run(m, x) * m.c.stride[0] + m.c.weight.sum()
    kill_(model.c, list(range(8)), 0.3)
    compact_exactly(model, SMALL, LARGE)


def test_a_dead_layer_whose_bias_forward_reads(net, randomise_, kill_, compact_exactly):
    """Its constant is not its bias: what it reads is constant too."""
    model = dead_branch(net, randomise_)
    run = model.run
    model.run = lambda m, x: run(m, x) + m.b.bias.sum()
    kill_(model.b, list(range(6)), 0.3)
    compact_exactly(model, SMALL, LARGE)


def test_a_dead_layer_with_a_hook(net, randomise_, kill_, compact_exactly):
    """A hook that changes its output must not leave with it."""
    model = dead_branch(net, randomise_)
    model.c.register_forward_hook(lambda _m, _args, y: y + 0.5)
    kill_(model.c, list(range(8)), 0.3)
    compact_exactly(model, SMALL, LARGE)


BORDERS_OF_DEAD = {
    "at odd sizes": lambda z: F.pad(z, (1, 1, 1, 1)) if z.shape[2] % 2 else z,
    "by amounts from the size": lambda z: F.pad(z, (0, 0, 0, z.shape[2] % 7)),
}


@pytest.mark.parametrize("case", BORDERS_OF_DEAD)
def test_a_dead_layer_whose_constant_holds_at_one_size_only(net, randomise_, kill_, case):
    """Every output of ``b`` is constant at 14 and 21 pixels, and has a border at 15."""
    model = network(
        net, randomise_, lambda m, x: m.head(x.mean((2, 3))) + m.b(BORDERS_OF_DEAD[case](m.a(x))).amin((2, 3)),
        b=conv(8, 2, 1), head=nn.Linear(3, 2),
    )  # fmt: skip
    kill_(model.a, list(range(8)), 0.4)
    result = compact(model, (torch.randn(1, 3, 16, 16, dtype=torch.float64),))
    agree(model, result.model, *(torch.randn(1, 3, size, size, dtype=torch.float64) for size in (16, 17, 18, 23)))


@pytest.mark.parametrize("used", ["twice", "by function"])
def test_a_dead_layer_that_is_used_in_two_ways(net, randomise_, kill_, compact_exactly, used):
    """Its constant is another at each use, or its weight is read by a function."""
    model = dead_branch(net, randomise_)
    run = model.run
    if used == "twice":
        model.run = lambda m, x: run(m, x) + m.b(F.relu(m.a(x)) + 1).sum((1, 2, 3))[:, None]
    else:
        model.run = lambda m, x: (
            run(m, x) + F.conv2d(F.relu(m.a(x)), m.b.weight, m.b.bias, stride=2).sum((1, 2, 3))[:, None]
        )
    kill_(model.b, list(range(6)), 0.3)
    compact_exactly(model, SMALL)


@pytest.mark.parametrize("layer", ["a", "b", "head"])
@pytest.mark.parametrize("value", [0.0, 0.4])
def test_a_network_that_no_longer_depends_on_its_input_is_refused(net, randomise_, kill_, layer, value):
    """One constant number is no useful network, whatever the certificate says about it."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))))
    dead = model.get_submodule(layer)
    kill_(dead, list(range(dead.weight.shape[0])), value)
    with pytest.raises(ModelError, match="input"):
        compact(model, (SMALL,))


@pytest.mark.parametrize("dead", [7, 8])
def test_at_least_one_index_stays_along_each_dimension(net, randomise_, kill_, compact_exactly, dead):
    """A weight of no rows is no layer."""
    model = network(
        net,
        randomise_,
        lambda m, x: pooled(m, m.b(F.relu(m.bn(m.a(x)))) + m.c(x)),
        c=conv(3, 5, 5),
        bn=nn.BatchNorm2d(8),
    )
    kill_(model.bn, list(range(dead)), 0.2)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 1
    assert min(min(p.shape) for p in result.model.parameters()) >= 1


@pytest.mark.parametrize(
    ("slopes", "dead"),
    [(1, 7), (8, 6), (8, 7)],
)
def test_one_channel_left_keeps_its_own_slope(net, randomise_, kill_, compact_exactly, slopes, dead):
    """A PReLU of one slope reads as one for all: with a single channel left the two look the same."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(m.act(m.a(x)))), act=nn.PReLU(slopes))
    kill_(model.a, list(range(dead)))
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 8 - dead


def test_one_channel_left_keeps_its_own_scale(net, randomise_, kill_, compact_exactly):
    """A scale of one entry reads as one for all."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(m.a(x) * m.scale)))
    model.scale = nn.Parameter(torch.rand(8, 1, 1, dtype=torch.float64))
    kill_(model.a, list(range(7)))
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 1


def test_depthwise_with_one_channel_left_is_no_ordinary_convolution(net, randomise_, kill_, compact_exactly):
    """groups = 1 reads as a convolution that mixes all its channels."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.dw(m.a(x))))), dw=conv(8, 16, groups=8), b=conv(16, 5)
    )
    kill_(model.a, list(range(7)))
    kill_(model.dw, list(range(14)))
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "dw"), result.model.dw.groups) == (1, 2, 1)


def test_a_convolution_of_one_input_is_depthwise_only_by_its_shape(net, randomise_, kill_, compact_exactly):
    """Cut down to one input, ``[out, 1, k, k]`` with one group still mixes into all its outputs."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))))
    kill_(model.a, list(range(7)))
    kill_(model.b, [3])
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b")) == (1, 4)


# --- channel selection in front of a BatchNorm ------------------------------------------------------------------------


def pre_activation(net, randomise_):
    """A stream ``a`` that two BatchNorms read: DenseNet, ResNet-v2."""

    def run(m, x):
        y = m.a(x)
        z = m.b(F.relu(m.first(y)))
        return pooled(m, z + m.c(F.relu(m.second(y))))

    norms = {"first": nn.BatchNorm2d(8), "second": nn.BatchNorm2d(8)}
    return network(net, randomise_, run, b=conv(8, 5, padding=1), c=conv(8, 5, padding=1), **norms)


@pytest.mark.parametrize("select", ["auto", "never", "always"])
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_a_channel_may_be_dead_for_one_reader_and_alive_in_the_stream(net, randomise_, kill_, select, shift):
    """An index in front of that reader's BatchNorm leaves it out there, and only there."""
    model = pre_activation(net, randomise_)
    kill_(model.first, [1, 2, 5], shift)
    kill_(model.second, [2, 6], shift)
    result = compact(model, (SMALL,), select=select)
    agree(model, result.model, SMALL, LARGE)
    first, second = result.model.b.in_channels, result.model.c.in_channels
    carrier = 1 if shift else 0
    if select == "always":
        assert (first, second) == (5 + carrier, 6 + carrier)
        assert width(result, "a") == 7 if not shift else 7 <= width(result, "a") <= 8  # the carrier may be channel 2
    if select == "never":
        assert first == second == width(result, "a")


def test_an_unknown_selection_is_an_error(net, randomise_):
    with pytest.raises(ConfigError, match="auto, never, always"):
        compact(pre_activation(net, randomise_), (SMALL,), select="sometimes")


def test_plan_and_weights_rebuild_what_was_removed(net, randomise_, kill_, tmp_path):
    """Folds, carriers, new biases and gathered groups are in the plan, not only in the model."""

    def base():
        return network(
            net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.g(F.relu(m.a(x)))))),
            g=conv(8, 8, groups=2), b=conv(8, 5, padding=1, bias=False),
        )  # fmt: skip

    model = base()
    kill_(model.a, DEAD, 0.5)
    kill_(model.g, [0, 1, 4, 7], 0.5)
    result = compact(model, (SMALL,))
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "weights.safetensors")
    rebuilt = load(tmp_path / "plan.json", tmp_path / "weights.safetensors", base=base)
    agree(model, rebuilt, SMALL, LARGE)


@pytest.mark.parametrize("kind", ["tokens", "vectors"])
def test_zeros_appended_to_features_are_no_border(net, randomise_, kill_, compact_exactly, kind):
    """Padding along the last dimension adds height or width to an image, and features to a row of tokens."""

    def run(m, x):
        y = F.relu(m.a(x)).flatten(2).transpose(1, 2)
        y = y if kind == "tokens" else y.mean(1)
        return m.fc(F.pad(y, (0, 2))).flatten(1)[:, :6]

    model = network(net, randomise_, run, fc=nn.Linear(10, 6))
    kill_(model.a, DEAD, 0.5)
    kill_(model.a, [7])
    result = compact_exactly(model, SMALL)
    assert width(result, "a") in (5, 8)


def test_the_report_counts_what_left(net, randomise_, kill_, compact_exactly):
    """By hand: parameters and multiply-accumulates before and after."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)))))
    kill_(model.a, DEAD)
    report = compact_exactly(model, SMALL[:1]).report
    assert report.params_before == (3 * 9 + 1) * 8 + (8 * 9 + 1) * 5 + 12
    assert report.params_after == (3 * 9 + 1) * 6 + (6 * 9 + 1) * 5 + 12
    assert report.macs_before == 9 * 10 * 8 * 27 + 7 * 8 * 5 * 72 + 10
    assert report.macs_after == 9 * 10 * 6 * 27 + 7 * 8 * 5 * 54 + 10


def test_the_graph_is_the_same_at_every_input_size(net, randomise_):
    """Classes depend on the network, not on the picture."""
    model = pre_activation(net, randomise_)
    graphs = [channel_graph(model, (x,)) for x in (SMALL, LARGE)]
    assert graphs[0].classes.count == graphs[1].classes.count
    for name, dims in graphs[0].classes.parameters.items():
        for dim, classes in dims.items():
            assert torch.equal(classes, graphs[1].classes.parameters[name][dim])
