"""The rules of exact removal, one by one, against closed forms and brute force, at two input sizes.

Brute force means here: plain loops over outputs, channels and taps instead of the library's convolutions, and hooks
that look at every channel of every activation over many inputs instead of the analysis.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.graph import channel_graph
from compress.surgery import compact
from small_networks import conv, width

SIZES = ((7, 8), (10, 9))  # either parity, height and width unlike
LIVE = [0, 2, 3, 5]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def images(count=2, channels=3, seed=0):
    """One batch of each size."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, channels, *size, dtype=torch.float64, generator=generator) for size in SIZES]


def reads_constants(net, randomise_, kill_, run, constants, **layers):
    """A pointwise layer ``a`` (3 -> 6) whose channels 1 and 4 are ``constants``, and ``run(m, F.relu(m.a(x)))``."""
    torch.manual_seed(0)
    model = randomise_(net(lambda m, x: run(m, F.relu(m.a(x))), a=conv(3, 6, 1), **layers))
    for channel, value in zip((1, 4), constants, strict=True):
        kill_(model.a, [channel], value)
    return model


def looped(x, weight, bias, stride=1, padding=0, dilation=1):
    """A convolution in plain loops: every output pixel, every tap that falls inside."""
    (n, _, height, columns), (outputs, _, kh, kw) = x.shape, weight.shape
    (ph, pw), s, d = (padding, padding) if isinstance(padding, int) else padding, stride, dilation
    rows_out, columns_out = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, k in ((height, ph, kh), (columns, pw, kw))
    )
    out = bias.detach().view(1, -1, 1, 1).repeat(n, 1, rows_out, columns_out)
    for row, column, i, j in itertools.product(range(rows_out), range(columns_out), range(kh), range(kw)):
        h, w = row * s - ph + i * d, column * s - pw + j * d
        if 0 <= h < height and 0 <= w < columns:
            for o in range(outputs):
                out[:, o, row, column] += (x[:, :, h, w] * weight[o, :, i, j]).sum(1)
    return out


def seen_by(model, layers, inputs):
    """For each layer, the constant of each of its input channels over all inputs and positions; NaN where it varies."""
    found = {name: [] for name in layers}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, args, _y, name=name: found[name].append(args[0].transpose(0, 1).flatten(1))
        )
        for name in layers
    ]
    with torch.no_grad():
        for x in inputs:
            model(x)
    for hook in hooks:
        hook.remove()
    return {name: _constant(torch.cat(values, 1)) for name, values in found.items()}


def _constant(values):
    same = (values - values[:, :1]).abs().amax(1) <= 1e-12
    return torch.where(same, values[:, 0], math.nan)


# --- zero -------------------------------------------------------------------------------------------------------------

ZEROS = {
    "no bias": (lambda m, y: y, 0.0),
    "below a ReLU": (lambda m, y: F.relu(y), -0.7),
    "at the root of an activation": (lambda m, y: F.silu(y), 0.0),
    "below a hard swish": (lambda m, y: F.hardswish(y), -4.0),
    "clamped": (lambda m, y: F.relu6(y - 1), 0.8),
    "cancelled by a BatchNorm": (lambda m, y: m.bn(y), 0.4),
}


@pytest.mark.parametrize("case", ZEROS)
def test_a_channel_that_is_zero_is_sliced(net, randomise_, kill_, compact_exactly, case):
    """Zero at every pixel of every input, as hooks see it: cut from writer and reader, nothing else changes."""
    act, value = ZEROS[case]
    torch.manual_seed(0)
    model = randomise_(
        net(lambda m, x: m.b(act(m, m.a(x))), a=conv(3, 6), bn=nn.BatchNorm2d(6), b=conv(6, 5, padding=1))
    )
    kill_(model.a, [1, 4], value)
    if case == "cancelled by a BatchNorm":  # scale * (0.4 - mean) / deviation + shift
        model.bn.running_mean[[1, 4]], model.bn.bias.data[[1, 4]] = 0.4, 0.0
    inputs = [*images(), *images(seed=1)]
    zero = seen_by(model, ["b"], inputs)["b"].abs() < 1e-15
    assert zero.nonzero().flatten().tolist() == [1, 4]
    result = compact_exactly(model, *inputs)
    assert width(result, "a") == 4
    assert torch.equal(result.model.a.weight, model.a.weight[LIVE])
    assert torch.equal(result.model.b.weight, model.b.weight[:, LIVE])
    assert torch.equal(result.model.b.bias, model.b.bias)
    assert result.plan.folds == ()


# --- foldable ---------------------------------------------------------------------------------------------------------

READERS = {
    "pointwise": lambda: conv(6, 5, 1),
    "3 x 3": lambda: conv(6, 5, 3),
    "2 x 3": lambda: conv(6, 5, (2, 3)),
    "strided": lambda: conv(6, 5, 3, stride=2),
    "dilated": lambda: conv(6, 5, 3, dilation=2),
    "strided and dilated": lambda: conv(6, 5, 2, stride=3, dilation=3),
    "reflected border": lambda: conv(6, 5, 3, padding=1, padding_mode="reflect"),
    "repeated border": lambda: conv(6, 5, 3, padding=1, padding_mode="replicate"),
    "circular border": lambda: conv(6, 5, 3, padding=1, padding_mode="circular"),
}


@pytest.mark.parametrize("case", READERS)
def test_a_constant_that_is_read_without_zero_padding_goes_into_the_bias(net, randomise_, kill_, compact_exactly, case):
    """bias[o] + sum of c_j W[o, j, h, w] over dead j and all taps, added up in plain loops."""
    model = reads_constants(net, randomise_, kill_, lambda m, y: m.b(y), (0.7, 0.2), b=READERS[case]())
    result = compact_exactly(model, *images())
    expected = model.b.bias.detach().clone()
    for (j, c), o in itertools.product(((1, 0.7), (4, 0.2)), range(5)):
        for h, w in itertools.product(*map(range, model.b.kernel_size)):
            expected[o] += c * model.b.weight[o, j, h, w].item()
    assert width(result, "a") == 4
    torch.testing.assert_close(result.model.b.bias.detach(), expected, **EXACT)
    assert torch.equal(result.model.b.weight, model.b.weight[:, LIVE])


@pytest.mark.parametrize("case", ["pointwise", "3 x 3", "strided and dilated"])
def test_or_into_the_mean_of_the_batch_norm_behind(net, randomise_, kill_, compact_exactly, case):
    """y = scale (z + s - mean) / deviation + shift = scale (z - (mean - s)) / deviation + shift."""
    reader = READERS[case]()
    reader.bias = None
    model = reads_constants(
        net, randomise_, kill_, lambda m, y: m.bn(m.b(y)), (0.7, 0.2), b=reader, bn=nn.BatchNorm2d(5)
    )
    result = compact_exactly(model, *images())
    expected = model.bn.running_mean.clone()
    for o in range(5):
        expected[o] -= sum(c * t.item() for j, c in ((1, 0.7), (4, 0.2)) for t in model.b.weight[o, j].flatten())
    assert result.model.b.bias is None
    torch.testing.assert_close(result.model.bn.running_mean, expected, **EXACT)


def test_or_into_a_linear_layer_behind_an_average(net, randomise_, kill_, compact_exactly):
    """The average of a constant is the constant, at every size."""
    model = reads_constants(net, randomise_, kill_, lambda m, y: m.b(y.mean((2, 3))), (0.7, 0.2), b=nn.Linear(6, 5))
    result = compact_exactly(model, *images())
    w = model.b.weight.detach()
    expected = torch.stack([model.b.bias[o].detach() + 0.7 * w[o, 1] + 0.2 * w[o, 4] for o in range(5)])
    torch.testing.assert_close(result.model.b.bias.detach(), expected, **EXACT)


def test_or_into_a_linear_layer_behind_a_flattened_image(net, randomise_, kill_, compact_exactly):
    """Each dead channel is height x width features, all of the same constant."""
    height, columns = SIZES[0]
    pixels = height * columns
    model = reads_constants(
        net, randomise_, kill_, lambda m, y: m.b(y.flatten(1)), (0.7, 0.2), b=nn.Linear(6 * pixels, 5)
    )
    result = compact_exactly(model, images()[0], images(seed=1)[0])
    expected = model.b.bias.detach().clone()
    for o, p in itertools.product(range(5), range(pixels)):
        expected[o] += 0.7 * model.b.weight[o, pixels + p].item() + 0.2 * model.b.weight[o, 4 * pixels + p].item()
    assert result.model.b.in_features == 4 * pixels
    torch.testing.assert_close(result.model.b.bias.detach(), expected, **EXACT)


# --- zero-padded readers, with strided and dilated borders ------------------------------------------------------------

BORDERS = [
    {"kernel": 3, "padding": 1},
    {"kernel": 3, "padding": 2},
    {"kernel": 1, "padding": 1},
    {"kernel": (3, 1), "padding": (1, 0)},
    {"kernel": 2, "padding": 1},
    {"kernel": 3, "padding": 1, "stride": 2},
    {"kernel": 3, "padding": 1, "stride": 3},
    {"kernel": 5, "padding": 2, "stride": 2},
    {"kernel": 3, "padding": 2, "dilation": 2},
    {"kernel": 3, "padding": 1, "dilation": 3},
    {"kernel": 3, "padding": 3, "stride": 2, "dilation": 3},
    {"kernel": 2, "padding": 1, "stride": 2, "dilation": 3},
]


@pytest.mark.parametrize("options", BORDERS, ids=str)
def test_a_zero_padded_reader_keeps_one_carrier_and_is_right_at_every_pixel(net, randomise_, kill_, options):
    """W[:, k] + (c_j / c_k) W[:, j]; each pixel, the corners too, against a convolution in plain loops."""
    options = dict(options)
    geometry = {name: options.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    model = reads_constants(
        net, randomise_, kill_, lambda m, y: m.b(y), (0.2, 0.8), b=conv(6, 4, options.pop("kernel"), **options)
    )
    result = compact(model, (images()[0],))
    assert result.plan.parameters["a.weight"].indices[0] == [0, 2, 3, 4, 5]  # 4 carries, 1 leaves
    carried = model.b.weight[:, 4] + 0.2 / 0.8 * model.b.weight[:, 1]
    torch.testing.assert_close(result.model.b.weight[:, 3], carried, **EXACT)
    assert torch.equal(result.model.b.weight[:, [0, 1, 2, 4]], model.b.weight[:, LIVE])
    assert torch.equal(result.model.b.bias, model.b.bias)
    with torch.no_grad():
        for x in images(count=1):
            expected = looped(F.relu(model.a(x)), model.b.weight, model.b.bias, **geometry)
            torch.testing.assert_close(result.model(x), expected, **EXACT)


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 2, "dilation": 2}], ids=str
)
def test_no_bias_could_stand_in_for_a_carrier(net, randomise_, kill_, options):
    """Folded into the bias the result is right where every tap falls inside, and wrong exactly where one does not."""
    model = reads_constants(net, randomise_, kill_, lambda m, y: m.b(y), (0.2, 0.8), b=conv(6, 4, **options))
    with torch.no_grad():
        bias = model.b.bias + sum(c * model.b.weight[:, j].sum((1, 2)) for j, c in ((1, 0.2), (4, 0.8)))
        for x in images(count=1):
            y = F.relu(model.a(x))
            folded = F.conv2d(y[:, LIVE], model.b.weight[:, LIVE], bias, **options)
            wrong = ((folded - model.b(y)).abs() > 1e-9).any(1)
            taps = F.conv2d(torch.ones_like(y[:, :1]), torch.ones(1, 1, 3, 3, dtype=y.dtype), **options)
            assert torch.equal(wrong, taps[:, 0] < 9)


def test_a_padded_reader_of_one_constant_loses_nothing(net, randomise_, kill_, compact_exactly):
    """The price is one channel: the only one."""
    model = reads_constants(net, randomise_, kill_, lambda m, y: m.b(y), (0.0, 0.8), b=conv(6, 4, padding=1))
    result = compact_exactly(model, *images())
    assert result.plan.parameters["a.weight"].indices[0] == [0, 2, 3, 4, 5]
    assert torch.equal(result.model.b.weight, model.b.weight[:, [0, 2, 3, 4, 5]])


def test_constants_of_either_sign_and_size_are_carried(net, randomise_, kill_, compact_exactly):
    """Down to ratios of a millionth, up to -1."""
    torch.manual_seed(0)
    values = (1e-6, -3.0, 0.5, 2.9)
    model = randomise_(net(lambda m, x: m.b(m.a(x)), a=conv(3, 6), b=conv(6, 4, padding=1)))
    for channel, value in zip((0, 1, 3, 4), values, strict=True):
        kill_(model.a, [channel], value)
    result = compact_exactly(model, *images())
    assert result.plan.parameters["a.weight"].indices[0] == [1, 2, 5]
    expected = model.b.weight[:, 1] - sum(v / 3 * model.b.weight[:, j] for j, v in ((0, 1e-6), (3, 0.5), (4, 2.9)))
    torch.testing.assert_close(result.model.b.weight[:, 0], expected, **EXACT)


# --- statistics over channels -----------------------------------------------------------------------------------------

STATISTICS = {
    "layer norm": lambda y: F.layer_norm(y.movedim(1, -1), (y.shape[1],)).movedim(-1, 1),
    "group norm": lambda y: F.group_norm(y, 1),
    "softmax": lambda y: y.softmax(1),
    "mean": lambda y: y - y.mean(1, keepdim=True),
    "variance": lambda y: y / (1 + y.var(1, keepdim=True)),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_under_a_statistic_over_channels_even_a_zero_counts(net, randomise_, kill_, compact_exactly, case):
    """By hand: without the zero channel every other channel is another number. So it stays, with the reason."""
    statistic = STATISTICS[case]
    model = reads_constants(net, randomise_, kill_, lambda m, y: m.b(statistic(y)), (0.0, 0.0), b=conv(6, 5))
    for x in images():
        y = F.relu(model.a(x)).detach()
        without = statistic(y[:, LIVE])
        assert (statistic(y)[:, LIVE] - without).abs().amax((0, 2, 3)).min() > 1e-3
    result = compact_exactly(model, *images())
    assert width(result, "a") == 6
    assert result.report.kept["a"].startswith("2 channels: ")


# --- average pooling that counts its padding --------------------------------------------------------------------------


@pytest.mark.parametrize("constants", [(0.0, 0.0), (0.0, 0.9), (0.6, 0.9)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_average_pooling_that_counts_its_padding_needs_a_carrier(
    net, randomise_, kill_, compact_exactly, constants, stride
):
    """By closed form a constant c becomes 4c/9 in a corner, 6c/9 on an edge, c inside: one channel stands for two."""
    model = reads_constants(
        net, randomise_, kill_, lambda m, y: m.b(F.avg_pool2d(y, 3, stride, 1)), constants, b=conv(6, 5, 1)
    )
    for x in images():
        y = F.avg_pool2d(F.relu(model.a(x)), 3, stride, 1).detach()
        for channel, c in zip((1, 4), constants, strict=True):
            corner, edge, inside = y[0, channel, 0, 0], y[0, channel, 0, 1], y[0, channel, 1, 1]
            torch.testing.assert_close(torch.stack((corner, edge, inside)) * 9, y.new_tensor((4, 6, 9)) * c, **EXACT)
    result = compact_exactly(model, *images())
    assert width(result, "a") == 4 + any(c != 0 for c in constants)


@pytest.mark.parametrize(
    "front",
    [
        lambda y: F.avg_pool2d(F.pad(y, (1, 2, 0, 1)), 3, 2, 1),
        lambda y: F.pad(F.avg_pool2d(y, 3, 1, 1), (0, 1, 0, 1)),
        lambda y: F.avg_pool2d(F.avg_pool2d(y, 3, 1, 1), 2, 2, 1, divisor_override=3),
        lambda y: F.pad(y, (0, y.shape[-1] % 4, 0, y.shape[-2] % 4)),
    ],
    ids=["padding, pooling", "pooling, padding", "pooling twice", "padding by size"],
)  # fmt: skip
@pytest.mark.parametrize("padding", [0, 1])
def test_a_chain_of_paddings_and_averages_needs_one_carrier(net, randomise_, kill_, compact_exactly, front, padding):
    """Each is linear and treats all channels alike: ``A(c 1) = c A(1)``, whatever ``A`` is."""
    model = reads_constants(
        net, randomise_, kill_, lambda m, y: m.b(front(y)), (0.6, 0.9), b=conv(6, 5, 3, padding=padding)
    )
    result = compact_exactly(model, *images())
    assert width(result, "a") == 5


def test_a_constant_with_another_border_than_the_others_is_not_carried_by_them(net, randomise_, kill_, compact_exactly):
    """One half of what the layer reads was averaged with padding counted, the other was not."""
    model = reads_constants(
        net, randomise_, kill_,
        lambda m, y: m.b(torch.cat([F.avg_pool2d(y[:, :3], 3, 1, 1), y[:, 3:]], 1)), (0.6, 0.9), b=conv(6, 5, 1),
    )  # fmt: skip
    result = compact_exactly(model, *images(), prefer="graph")
    assert width(result, "a") == 5


@pytest.mark.parametrize(
    "pool",
    [
        lambda y: F.avg_pool2d(y, 3, 2),
        lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True),
        lambda y: F.max_pool2d(y, 3, 2, 1),
        lambda y: F.max_pool2d(y, 2, 2, ceil_mode=True),
        lambda y: F.adaptive_avg_pool2d(y, (3, 2)),
    ],
    ids=["average", "average with ceil", "padded maximum", "maximum with ceil", "adaptive"],
)  # fmt: skip
def test_pooling_that_counts_no_padding_keeps_every_constant(net, randomise_, kill_, compact_exactly, pool):
    """Their constants fold into the reader as they are."""
    model = reads_constants(net, randomise_, kill_, lambda m, y: m.b(pool(y)), (0.6, 0.9), b=conv(6, 5, 1))
    result = compact_exactly(model, *images())
    expected = model.b.bias + 0.6 * model.b.weight[:, 1, 0, 0] + 0.9 * model.b.weight[:, 4, 0, 0]
    assert width(result, "a") == 4
    torch.testing.assert_close(result.model.b.bias, expected, **EXACT)


# --- depthwise convolution of a constant ------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}], ids=str)
def test_an_unpadded_depthwise_convolution_of_a_constant(net, randomise_, kill_, compact_exactly, options, multiplier):
    """c times the sum of the taps, plus the bias; in plain loops into the bias of the reader."""
    depthwise = conv(6, 6 * multiplier, groups=6, **options)
    model = reads_constants(
        net, randomise_, kill_, lambda m, y: m.b(m.dw(y)), (0.5, 0.9), dw=depthwise, b=conv(6 * multiplier, 5, 1)
    )
    result = compact_exactly(model, *images())
    expected = model.b.bias.detach().clone()
    for (j, c), k in itertools.product(((1, 0.5), (4, 0.9)), range(multiplier)):
        channel = j * multiplier + k
        value = model.dw.bias[channel].item() + sum(c * tap.item() for tap in model.dw.weight[channel].flatten())
        for o in range(5):
            expected[o] += value * model.b.weight[o, channel, 0, 0].item()
    assert (width(result, "a"), width(result, "dw")) == (4, 4 * multiplier)
    torch.testing.assert_close(result.model.b.bias.detach(), expected, **EXACT)


@pytest.mark.parametrize("value", [0.0, 0.8])
def test_a_padded_depthwise_convolution_of_a_constant(net, randomise_, kill_, compact_exactly, value):
    """By closed form the corner sees four of nine taps: of 0 a constant, of anything else none."""
    model = reads_constants(
        net,
        randomise_,
        kill_,
        lambda m, y: m.b(m.dw(y)),
        (value, value),
        dw=conv(6, 6, groups=6, padding=1),
        b=conv(6, 5, 1),
    )
    for x in images():
        y, taps = model.dw(F.relu(model.a(x))).detach(), model.dw.weight.detach()[1, 0]
        bias = model.dw.bias[1].item()
        assert y[0, 1, 0, 0].item() == pytest.approx(bias + value * taps[1:, 1:].sum().item(), abs=1e-12)
        assert y[0, 1, 3, 3].item() == pytest.approx(bias + value * taps.sum().item(), abs=1e-12)
    result = compact_exactly(model, *images())
    assert width(result, "a") == width(result, "dw") == (6 if value else 4)


def test_a_padded_depthwise_convolution_of_a_constant_that_a_later_scale_kills(net, randomise_, kill_, compact_exactly):
    """Unknown at the border, and then times 0: the shift of the BatchNorm, everywhere."""
    model = reads_constants(
        net, randomise_, kill_, lambda m, y: m.b(m.bn(m.dw(y))), (0.8, 0.8),
        dw=conv(6, 6, groups=6, padding=1), bn=nn.BatchNorm2d(6), b=conv(6, 5, 1),
    )  # fmt: skip
    kill_(model.bn, [1, 4], 0.25)
    result = compact_exactly(model, *images())
    expected = model.b.bias + 0.25 * (model.b.weight[:, 1, 0, 0] + model.b.weight[:, 4, 0, 0])
    assert width(result, "a") == width(result, "dw") == 4
    torch.testing.assert_close(result.model.b.bias, expected, **EXACT)


# --- padding that depends on the input's size -------------------------------------------------------------------------

SIZE_DEPENDENT = {
    "a branch at odd heights": lambda y: F.pad(y, (0, 1, 0, 1)) if y.shape[2] % 2 else y,
    "a branch at even heights": lambda y: F.pad(y, (0, 1, 0, 1)) if y.shape[2] % 2 == 0 else y,
    "amounts from the size": lambda y: F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2)),
    "amounts in front": lambda y: F.pad(y, (y.shape[3] % 3, 0, y.shape[2] % 3, 0)),
}


@pytest.mark.parametrize("first", [0, 1], ids=SIZES.__getitem__)
@pytest.mark.parametrize("case", SIZE_DEPENDENT)
def test_padding_that_depends_on_the_input_size_is_padding_at_every_size(
    net, randomise_, kill_, compact_exactly, case, first
):
    """Whichever size is traced: pixel by pixel against plain loops at both. A 0 leaves, constants need a carrier."""
    pad = SIZE_DEPENDENT[case]
    torch.manual_seed(0)
    model = randomise_(net(lambda m, x: m.b(pad(F.relu(m.a(x)))), a=conv(3, 6, 1), b=conv(6, 4)))
    for channel, value in ((1, 0.2), (4, 0.8), (5, 0.0)):
        kill_(model.a, [channel], value)
    inputs = images(count=1)
    result = compact_exactly(model, inputs[first], inputs[1 - first])
    assert width(result, "a") in (4, 5)  # 0 is gone; of the constants both stay, or one as carrier
    assert torch.equal(result.model.b.bias, model.b.bias)
    with torch.no_grad():
        for x in inputs:
            expected = looped(pad(F.relu(model.a(x))), model.b.weight, model.b.bias)
            torch.testing.assert_close(result.model(x), expected, **EXACT)


# --- the analysis against brute force ---------------------------------------------------------------------------------


def busy(m, x):
    """Every rule in one network, without zero padding in front of a constant other than 0."""
    y = F.silu(m.bn(m.a(x)))  # no ReLU: a live channel might happen to be below zero for every input that is tried
    y = y + m.c(F.elu(m.b(y)))
    z = F.max_pool2d(F.leaky_relu(m.dw(y)), 2, 1)
    z = z * F.hardsigmoid(m.up(F.silu(m.down(F.adaptive_avg_pool2d(z, 1)))))
    z = torch.cat((z, torch.tanh(m.side(x))), 1)
    return m.head(F.avg_pool2d(m.d(z), 2, ceil_mode=True).mean((2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_what_the_analysis_proves_is_what_hooks_see(net, randomise_, seed):
    """Both ways, for the inputs of every layer: no claim that is not true, no constant that was overlooked."""
    torch.manual_seed(seed)
    model = net(
        busy, a=conv(3, 8, 1), bn=nn.BatchNorm2d(8), b=conv(8, 6, 1), c=conv(6, 8, 1), dw=conv(8, 8, 1, groups=8),
        down=conv(8, 4, 1), up=conv(4, 8, 1), side=conv(3, 4, 2), d=conv(12, 5, 2), head=nn.Linear(5, 2),
    )  # fmt: skip
    randomise_(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (model.bn, model.b, model.c, model.dw, model.down, model.up, model.side, model.d):
            rows = torch.rand(layer.weight.shape[0], generator=generator) < 0.4
            rows[0] = False
            layer.weight[rows] = 0
            layer.bias[rows] = torch.randn(int(rows.sum()), dtype=torch.float64, generator=generator).round()
        model.up.bias[model.up.weight.flatten(1).abs().sum(1) == 0] = -3.0  # shut gates
        model.up.weight.mul_(0.1)  # the others open and close
    layers = ["b", "c", "down", "up", "d", "head"]
    truth = seen_by(model, layers, [*images(8), *images(8, seed=1), *(20 * x for x in images(4, seed=2))])
    claims = {c.weight.removesuffix(".weight"): c.constants for c in channel_graph(model, (images()[0],)).consumers}
    for layer in layers:
        torch.testing.assert_close(claims[layer], truth[layer], equal_nan=True, rtol=1e-9, atol=1e-9, msg=layer)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("padding", [0, 1])
def test_widths_are_what_hooks_say_they_should_be(net, randomise_, kill_, compact_exactly, seed, padding):
    """A chain: what is left of each layer is what varies, and one carrier for constants that a border reads."""
    torch.manual_seed(seed)
    model = randomise_(
        net(
            lambda m, x: m.head(F.silu(m.c(F.silu(m.b(F.silu(m.a(x)))))).mean((2, 3))),
            a=conv(3, 8), b=conv(8, 7, 1), c=conv(7, 6, padding=padding), head=nn.Linear(6, 2),
        ),
        seed,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for layer in (model.a, model.b, model.c):
        for channel in torch.randperm(layer.out_channels, generator=generator)[:3].tolist():
            kill_(layer, [channel], float(torch.randint(-1, 3, (), generator=generator)) / 2)
    inputs = [*images(8), *images(8, seed=1)]
    truth = seen_by(model, ["b", "c", "head"], inputs)
    result = compact_exactly(model, *inputs)
    for writer, reader in (("a", "b"), ("b", "c"), ("c", "head")):
        seen = truth[reader]
        carrier = int(padding and reader == "c" and bool((seen.nan_to_num() != 0).any()))
        assert width(result, writer) == int(seen.isnan().sum()) + carrier
