"""Pitfalls of proving constants: what looked constant and was not, and what was constant and looked unknown.

Every claim is held against the truth: what enters the reader ``b`` of the network itself, at two input sizes, over many
inputs. The source ``a`` has four channels: the constant 1.5, the constant -0.75, 0, and one that is alive.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import CompressError, ModelError, VerificationError
from compress.graph import channel_graph
from compress.surgery import compact
from small_networks import f64, width

GENERATOR = torch.Generator().manual_seed(0)
SMALL, LARGE = (torch.randn(2, 3, size, size + 1, dtype=torch.float64, generator=GENERATOR) for size in (8, 13))
POSITIVE, NEGATIVE, ZERO, ALIVE = range(4)
NAN = float("nan")


def conv(inputs, outputs, kernel=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


def reader(net, randomise_, kill_, op, *, read=4, alive=(ALIVE,), b=None, **layers):
    """conv ``a`` -> ``op(m, y)`` -> conv ``b`` -> ReLU -> average -> linear ``head``."""
    torch.manual_seed(0)
    model = net(
        lambda m, x: m.head(F.relu(m.b(op(m, m.a(x)))).mean((2, 3))),
        **{"a": conv(3, 4), "b": b or conv(read, 5), "head": nn.Linear(5, 2), **layers},
    )
    randomise_(model)
    for channel, value in ((POSITIVE, 1.5), (NEGATIVE, -0.75), (ZERO, 0.0)):
        if channel not in alive:
            kill_(model.a, [channel], value)
    return model


def reader_of(model, x=SMALL, layer="b"):
    graph = channel_graph(model, (x,))
    (consumer,) = [c for c in graph.consumers if c.weight == f"{layer}.weight"]
    return consumer


def claimed(model, x=SMALL, layer="b"):
    """The constants that the graph proves for the inputs of a layer, NaN for unknown."""
    return reader_of(model, x, layer).constants


def observed(model, layer="b"):
    """All values of each channel that enters the layer, over many inputs at two sizes: float64 ``[channels, many]``."""
    seen = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda _m, args, _y: seen.append(args[0].transpose(0, 1).flatten(1).double())
    )
    with torch.no_grad():
        for x in (SMALL, LARGE, 10 * SMALL, -LARGE.abs(), LARGE.abs(), torch.zeros_like(SMALL)):
            model(x)
    hook.remove()
    return torch.cat(seen, 1)


def check_claims(model):
    """No claim but the truth; the claims are returned.

    In front of a border each constant may be less, and all of them equally: times one and the same image.
    """
    consumer, values = reader_of(model), observed(model)
    claims = consumer.constants
    image = torch.ones_like(values[0])
    if consumer.padded and bool((claims.nan_to_num() != 0).any()):
        largest = int(claims.nan_to_num().abs().argmax())
        image = values[largest] / claims[largest]
    for constant, found in zip(claims.tolist(), values, strict=True):
        if constant == constant:  # no NaN
            assert not bool(((found - constant * image).abs() > 1e-12 * (1 + abs(constant))).any())
    return claims


# --- NaN stands for unknown: what loses it must not be executed ------------------------------------------------------

SWALLOWS_NAN = {
    "fmax": lambda y: torch.fmax(y, torch.zeros_like(y)),
    "fmin": lambda y: torch.fmin(y, torch.zeros_like(y)),
    "sign": torch.sign,
    "sgn": torch.sgn,
    "nan_to_num": torch.nan_to_num,
    "power 0": lambda y: y.pow(0) * y.pow(0.0) + (y + 9).relu() ** 0,
    "power of 1": lambda y: torch.pow(1.0, y),
    "where": lambda y: torch.where(y > 0, 1.0, 0.0).to(y.dtype),
    "where of two constants": lambda y: torch.where(y[:, ALIVE:] > 0, y, y + 1),
    "where with an unknown branch": lambda y: torch.where(y == y, y.flip(1), y),
    "masked_fill": lambda y: y.masked_fill(y[:, ALIVE:] > 0, 0.5),
    "greater": lambda y: (y > 0).to(y.dtype),
    "equal": lambda y: (y == 0).double(),
    "not equal": lambda y: (y != y[:, ALIVE:]).double(),
    "heaviside": lambda y: torch.heaviside(y, y.new_tensor(0.5)),
    "copysign": lambda y: torch.copysign(torch.ones_like(y), y),
    "signbit": lambda y: y.signbit().double(),
    "isnan": lambda y: y.isnan().double() + y.isfinite().double(),
    "logical": lambda y: (y > 0).logical_not().double() + torch.logical_and(y, y).double(),
    "bool": lambda y: y.bool().double(),
    "integer": lambda y: y.long().double(),
    "nansum": lambda y: y.nansum((2, 3), keepdim=True),
    "any": lambda y: (y > 0).any(3, keepdim=True).double(),
    "count_nonzero": lambda y: y.count_nonzero((2, 3))[:, :, None, None].double(),
    "argmax": lambda y: y.flatten(2).argmax(2)[:, :, None, None].double(),
    "bucketize": lambda y: torch.bucketize(y, y.new_tensor([-1.0, 0.0, 1.0])).double(),
    "softshrink": lambda y: F.softshrink(y, 0.5),
    "hardshrink": lambda y: F.hardshrink(y, 0.5),
    "threshold": lambda y: F.threshold(y, 0.1, 0.2),
    "hardtanh": lambda y: F.hardtanh(y) + F.relu6(y) + F.hardsigmoid(y) + F.hardswish(y),
    "clamp": lambda y: y.clamp(-0.5, 0.5) + y.clamp_min(0) + y.clamp_max(1),
    "clamp by a tensor": lambda y: y.clamp(min=y.flip(1)),
    "maximum": lambda y: torch.maximum(y, y.flip(1)) + torch.minimum(y, y.flip(1)),
    "round": lambda y: y.round() + y.floor() + y.ceil() + y.trunc(),
    "remainder": lambda y: y.remainder(1) + y.fmod(0.5) + y.frac(),
    "floor division": lambda y: torch.div(y, 0.5, rounding_mode="floor"),
    "fake quantisation": lambda y: torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -128, 127),
    "hypot": lambda y: torch.hypot(y, y.flip(1)),
    "atan2": lambda y: torch.atan2(y, y.flip(1)),
    "xlogy": lambda y: torch.xlogy(y.new_zeros(()), y.abs() + 1),
    "lerp": lambda y: torch.lerp(y, y.flip(1), 0.0),
    "addcmul": lambda y: torch.addcmul(y, y, y.flip(1), value=0.0),
    "sort": lambda y: y.sort(2)[0],
    "median": lambda y: y.flatten(2).median(2)[0][:, :, None, None],
    "max over space": lambda y: y.amax((2, 3), keepdim=True) + y.amin((2, 3), keepdim=True),
    "max over channels": lambda y: y.amax(1, keepdim=True).repeat(1, 4, 1, 1),
    "mean over channels": lambda y: y.mean(1, keepdim=True).expand(-1, 4, -1, -1),
    "max pools": lambda y: F.max_pool2d(y, 3, 1, 1) + F.adaptive_max_pool2d(y, 1),
    "norm": lambda y: y.norm(dim=(2, 3), keepdim=True),
    "softmax": lambda y: y.softmax(1),
    "normalize": lambda y: F.normalize(y, dim=1),
    "cumsum": lambda y: y.cumsum(3),
    "random numbers": lambda y: y + 0 * torch.randn_like(y),
}  # fmt: skip


@pytest.mark.parametrize("case", SWALLOWS_NAN)
def test_ops_that_swallow_nan_prove_nothing(net, randomise_, kill_, case):
    """fmax(NaN, 0) is 0, pow(NaN, 0) is 1, NaN > 0 is False: executed on an unknown, each would prove a constant."""
    check_claims(reader(net, randomise_, kill_, lambda m, y: SWALLOWS_NAN[case](y)))


@pytest.mark.parametrize("case", ["fmax", "nan_to_num", "where", "heaviside"])
def test_an_unknown_stays_unknown_behind_them(net, randomise_, kill_, compact_exactly, case):
    """Three live channels: nothing at all is known of them, and nothing leaves."""
    model = reader(net, randomise_, kill_, lambda m, y: SWALLOWS_NAN[case](y), alive=(0, 1, 3))
    assert claimed(model)[[0, 1, 3]].isnan().all()
    assert width(compact_exactly(model, SMALL, LARGE), "a") >= 3


# --- the table of absorbing rules -----------------------------------------------------------------------------------


def test_a_proved_zero_closes_a_gate_from_either_side(net, randomise_, kill_, compact_exactly):
    """0 times unknown is 0, also where the gate has one pixel, or one channel for all."""
    model = reader(
        net,
        randomise_,
        kill_,
        lambda m, y: torch.cat((y * m.gate(x := y.flip(2)), m.gate(x) * y.mean((2, 3), keepdim=True) + 0 * y), 1),
        read=8,
        gate=conv(4, 4),
    )
    kill_(model.gate, [1, 3])
    torch.testing.assert_close(check_claims(model), f64(NAN, 0, 0, 0, NAN, 0, 0, 0), equal_nan=True)
    assert width(compact_exactly(model, SMALL, LARGE), "a") < 4


@pytest.mark.parametrize(
    "gate", [F.hardsigmoid, lambda z: F.relu(z + 3) / 6, lambda z: F.relu6(z)], ids=["hard", "relu", "relu6"]
)
def test_a_squeeze_excite_gate_that_is_shut_kills_its_channel(net, randomise_, kill_, compact_exactly, gate):
    """The gate's own layer has a constant far below zero: what it multiplies is alive, and dead behind it."""
    model = reader(
        net,
        randomise_,
        kill_,
        lambda m, y: y * gate(m.gate(F.adaptive_avg_pool2d(y, 1))),
        alive=range(4),
        gate=conv(4, 4),
    )
    kill_(model.gate, [0, 2], -5.0)
    model.gate.weight.data[:, [0, 2]] = 0
    torch.testing.assert_close(check_claims(model), f64(0, NAN, 0, NAN), equal_nan=True)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.model.b.in_channels == 2


def test_a_gate_that_is_almost_shut_kills_nothing(net, randomise_, kill_, compact_exactly):
    """A sigmoid of -30 is 1e-13: small, no 0."""
    model = reader(
        net, randomise_, kill_, lambda m, y: 1e13 * y * torch.sigmoid(m.gate(y)), alive=range(4), gate=conv(4, 4)
    )
    kill_(model.gate, [0, 2], -30.0)
    assert claimed(model).isnan().all()
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 4


@pytest.mark.parametrize(
    "op",
    [lambda y, z: y / z, lambda y, z: z / y.abs().add(1) / (z * 0 + 1), lambda y, z: y * (1 / z)],
    ids=["0 / unknown", "unknown / known", "0 times the reciprocal"],
)
def test_a_quotient_absorbs_nothing_that_it_should_not(net, randomise_, kill_, op):
    """0 / unknown may be 0 / 0."""
    model = reader(net, randomise_, kill_, lambda m, y: op(y, m.c(y)), c=conv(4, 4))
    check_claims(model)


def test_zero_weights_absorb_an_unknown(net, randomise_, kill_, compact_exactly):
    """A layer with zero weights gives its bias, an output that weighs the unknown with zero is known."""
    model = reader(net, randomise_, kill_, lambda m, y: m.c(y), c=conv(4, 4))
    with torch.no_grad():
        model.c.weight[0] = 0
        model.c.weight[1, ALIVE] = 0
    taps = model.c.weight[1, :, 0, 0] * f64(1.5, -0.75, 0, 0)
    expected = f64(model.c.bias[0].item(), (taps.sum() + model.c.bias[1]).item(), NAN, NAN)
    torch.testing.assert_close(check_claims(model), expected, equal_nan=True)
    compact_exactly(model, SMALL, LARGE)


def test_a_batch_norm_scale_of_zero_leaves_the_shift_whatever_enters(net, randomise_, kill_, compact_exactly):
    """Also behind an op that nothing is known about."""
    model = reader(net, randomise_, kill_, lambda m, y: m.bn(torch.nan_to_num(y)), bn=nn.BatchNorm2d(4))
    kill_(model.bn, [ALIVE], 0.25)
    assert check_claims(model)[ALIVE] == 0.25
    compact_exactly(model, SMALL, LARGE)


@pytest.mark.parametrize(
    ("options", "known"), [({"affine": False}, True), ({"track_running_stats": False}, False)], ids=str
)
def test_batch_norms_without_parameters_or_statistics(net, randomise_, kill_, compact_exactly, options, known):
    """Without running statistics the batch's own are used, in evaluation mode too."""
    model = reader(net, randomise_, kill_, lambda m, y: m.bn(y))
    model.bn = nn.BatchNorm2d(4, **options).double().eval()
    assert bool(check_claims(model)[POSITIVE].isnan()) != known
    assert width(compact_exactly(model, SMALL, LARGE), "a") <= (1 if known else 4)


def test_a_batch_norm_with_a_cumulative_average(net, randomise_, kill_, compact_exactly):
    """momentum=None changes training, not evaluation."""
    model = reader(net, randomise_, kill_, lambda m, y: m.bn(y), bn=nn.BatchNorm2d(4, momentum=None))
    assert (~check_claims(model).isnan()).tolist() == [True, True, True, False]
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 1


# --- padded ops need rules: executed values at one size prove nothing -------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("value", [0.0, 0.8])
def test_a_padded_depthwise_convolution_of_a_constant(net, randomise_, kill_, compact_exactly, value, scale):
    """Constant inside, less at the border: unknown, unless the constant is 0 or a later scale is."""
    model = reader(
        net, randomise_, kill_, lambda m, y: m.bn(m.dw(y)), alive=range(4),
        dw=conv(4, 4, 3, padding=1, groups=4), bn=nn.BatchNorm2d(4),
    )  # fmt: skip
    kill_(model.a, [1], value)
    if scale == 0:
        kill_(model.bn, [1], 0.3)
    claims = check_claims(model)
    assert bool(claims[1].isnan()) == (value != 0 and scale != 0)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == (4 if claims[1].isnan() else 3)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("ceil", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("count", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("divisor", [None, 9])
def test_average_pooling(net, randomise_, kill_, padding, ceil, count, divisor):
    """Padding that is counted, windows over the edge, another divisor: all constants become less, and equally."""
    model = reader(net, randomise_, kill_, lambda m, y: F.avg_pool2d(y, 7, 3, padding, ceil, count, divisor))
    claims = check_claims(model)
    assert claims[ZERO] == 0
    if divisor is None and padding == 0:
        torch.testing.assert_close(claims, f64(1.5, -0.75, 0, NAN), equal_nan=True)


def test_average_pooling_that_does_not_count_its_padding_keeps_a_constant(net, randomise_, kill_):
    """The divisor is the number of true entries: the mean of equal values."""
    model = reader(net, randomise_, kill_, lambda m, y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False))
    torch.testing.assert_close(check_claims(model), f64(1.5, -0.75, 0, NAN), equal_nan=True)


KEEPS_CONSTANTS = {
    "padded max pool": lambda y: F.max_pool2d(y, 3, 2, 1),  # padded with -infinity: also below zero
    "max pool with ceil mode": lambda y: F.max_pool2d(y, 3, 2, ceil_mode=True),
    "dilated padded max pool with ceil mode": lambda y: F.max_pool2d(y, 3, 2, 1, 2, True),
    "max pool with indices": lambda y: F.max_pool2d(y, 3, 2, 1, return_indices=True)[0],
    "max pool over one dimension": lambda y: F.max_pool1d(y.flatten(2), 3, 2, 1).unsqueeze(2),
    "average pool with ceil mode": lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True),
    "adaptive pools": lambda y: torch.cat((F.adaptive_avg_pool2d(y, 3), F.adaptive_max_pool2d(y, 3)), 2),
    "reflected pad": lambda y: F.pad(y, (1, 2, 0, 1), mode="reflect"),
    "repeated pad": lambda y: F.pad(y, (1, 2, 0, 1), mode="replicate"),
    "circular pad": lambda y: F.pad(y, (1, 2, 0, 1), mode="circular"),
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "bilinear": lambda y: F.interpolate(y, scale_factor=1.7, mode="bilinear"),
    "bilinear with aligned corners": lambda y: F.interpolate(y, size=(5, 9), mode="bilinear", align_corners=True),
    "mean": lambda y: y.mean((2, 3), keepdim=True),
    "roll": lambda y: y.roll(1, 2).flip(3),
    "crop of a pad": lambda y: F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
}


@pytest.mark.parametrize("case", KEEPS_CONSTANTS)
def test_ops_over_space_that_keep_a_constant(net, randomise_, kill_, case):
    """Their padding is no value, or a copy: the constant is the same at the border."""
    model = reader(net, randomise_, kill_, lambda m, y: KEEPS_CONSTANTS[case](y))
    torch.testing.assert_close(check_claims(model), f64(1.5, -0.75, 0, NAN), equal_nan=True)


@pytest.mark.parametrize("case", ["padded max pool", "average pool with ceil mode", "reflected pad", "bilinear"])
def test_such_constants_fold(net, randomise_, kill_, compact_exactly, case):
    """As they are."""
    model = reader(net, randomise_, kill_, lambda m, y: KEEPS_CONSTANTS[case](y))
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 1


def normed(**options):
    """An InstanceNorm whose last channel has the scale 0, and a shift in each."""
    norm = nn.InstanceNorm2d(4, affine=True, **options).double().eval()
    norm.weight.data[ALIVE] = 0
    norm.bias.data.copy_(f64(0.1, 0.2, 0.3, 0.4))
    return norm


UNIT = (1 + 1e-5) ** -0.5  # a variance of 1 and the epsilon of torch's normalisations
KNOWN = {
    "first few": (lambda m, y: y.flatten(2).topk(3, 2)[0][..., None], (1.5, -0.75, 0, NAN)),
    "sorted": (lambda m, y: y.flatten(2).sort(2)[0][..., None], (1.5, -0.75, 0, NAN)),
    "largest": (lambda m, y: y.flatten(2).max(2)[0][..., None, None], (1.5, -0.75, 0, NAN)),
    "larger of two": (lambda m, y: torch.maximum(y, torch.ones_like(y)), (1.5, 1, 1, NAN)),
    "instance norm": (lambda m, y: m.own(y), (NAN, NAN, 0.3, 0.4)),
    "instance norm of running statistics": (lambda m, y: m.running(y), (0.1 + 1.5 * UNIT, 0.2 - 0.75 * UNIT, 0.3, 0.4)),
    "layer norm over space": (lambda m, y: F.layer_norm(y, y.shape[2:]), (NAN, NAN, 0, NAN)),
    "created": (lambda m, y: y * y.new_full((1,), 0.5) + torch.ones_like(y), (1.75, 0.625, 1, NAN)),
    "half precision": (lambda m, y: (y * 0.1).half().double(), (*f64(0.15, -0.075).half().tolist(), 0, NAN)),
    "whole numbers": (lambda m, y: y.to(torch.uint8).sub(1).double(), (NAN, NAN, NAN, NAN)),
    "a filter that is computed": (
        lambda m, y: F.conv2d(y, y.mean((0, 2, 3)).view(4, 1, 1, 1) + 1, groups=4), (3.75, -0.1875, 0, NAN),
    ),
    "a filter that depends on the input": (
        lambda m, y: F.conv2d(y, y[:, 3:].mean().expand(4, 1, 1, 1), groups=4), (NAN, NAN, 0, NAN),
    ),
    "written into another": (lambda m, y: torch.zeros_like(y).slice_scatter(y[:, :, 1:], 2, 1), (NAN, NAN, 0, NAN)),
    "written over another": (lambda m, y: torch.zeros_like(y).slice_scatter(y, 2, 0), (NAN, NAN, 0, NAN)),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_what_is_known_behind_an_op(net, randomise_, kill_, case):
    """Held against the expected values, and against what is observed at two sizes."""
    op, expected = KNOWN[case]
    model = reader(net, randomise_, kill_, op)
    model.own, model.running = normed(), normed(track_running_stats=True)
    claims = check_claims(model)
    torch.testing.assert_close(claims, f64(*expected), equal_nan=True)


KEEPS_ZERO_ONLY = {
    "pad": lambda y: F.pad(y, (1, 2, 0, 1)),
    "pad from one side": lambda y: F.pad(y, (0, 0, 0, 1)),
    "average pool that counts": lambda y: F.avg_pool2d(y, 3, 2, 1),
    "average pool of windows over the edge that counts": lambda y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True),
    "padded depthwise": lambda y: F.conv2d(y, torch.ones(4, 1, 3, 3, dtype=y.dtype), padding=1, groups=4),
    "times a position": lambda y: y * torch.arange(y.shape[3], dtype=y.dtype),
    "zeros beside it": lambda y: torch.cat((y, torch.zeros_like(y)), 2),
    "a spatial gate": lambda y: y * torch.sigmoid(y[:, -1:]),
    "sum over space": lambda y: y.sum((2, 3), keepdim=True),  # its value grows with the input
    "norm over space": lambda y: y.norm(dim=(2, 3), keepdim=True),
    "running sum": lambda y: y.cumsum(2),
    "bicubic": lambda y: F.interpolate(y, scale_factor=2, mode="bicubic"),  # rounding differs by place
}


@pytest.mark.parametrize("case", KEEPS_ZERO_ONLY)
def test_ops_over_space_under_which_no_constant_but_zero_survives(net, randomise_, kill_, compact_exactly, case):
    """Constant inside is not constant at the border, constant at one size not at another."""
    model = reader(net, randomise_, kill_, lambda m, y: KEEPS_ZERO_ONLY[case](y))
    claims = check_claims(model)
    assert claims[[POSITIVE, NEGATIVE, ALIVE]].isnan().all() or reader_of(model).padded
    compact_exactly(model, SMALL, LARGE)


@pytest.mark.parametrize("case", KEEPS_ZERO_ONLY)
def test_zero_survives_them(net, randomise_, kill_, case):
    """The common case must not be lost: a dead channel is 0 almost always."""
    model = reader(net, randomise_, kill_, lambda m, y: KEEPS_ZERO_ONLY[case](y))
    assert claimed(model)[ZERO] == 0


def test_a_pad_with_another_number_is_constant_only_where_it_is_the_same(net, randomise_, kill_, compact_exactly):
    """Padding with 1.5 keeps 1.5 and spoils 0."""
    model = reader(net, randomise_, kill_, lambda m, y: F.pad(y, (1, 1, 1, 1), value=1.5))
    torch.testing.assert_close(check_claims(model), f64(1.5, NAN, NAN, NAN), equal_nan=True)
    compact_exactly(model, SMALL, LARGE)


PADS_NOTHING = {
    "remainder": lambda y: F.pad(y, (0, y.shape[3] % 7, 0, y.shape[2] % 7)),
    "to the next multiple": lambda y: F.pad(y, (0, -y.shape[3] % 7, 0, -y.shape[2] % 7)),
    "to a least size": lambda y: F.pad(y, (0, 0, 0, max(0, 10 - y.shape[2]))),
    "zeros of no rows": lambda y: torch.cat((y, y.new_zeros(*y.shape[:2], y.shape[2] % 7, y.shape[3])), 2),
    "copied into zeros": lambda y: y.new_zeros(*y.shape[:2], y.shape[2] + y.shape[2] % 7, y.shape[3]).slice_scatter(
        y, 2, 0, y.shape[2]
    ),
    "remainder and a ReLU": lambda y: F.relu(F.pad(y, (0, y.shape[3] % 7, 0, y.shape[2] % 7))),
    "remainder and a pooling": lambda y: F.max_pool2d(F.pad(y, (0, y.shape[3] % 7, 0, y.shape[2] % 7)), 2, 1),
    "remainder and a depthwise convolution": lambda y: F.conv2d(
        F.pad(y, (0, y.shape[3] % 7, 0, y.shape[2] % 7)), torch.ones(4, 1, 1, 1, dtype=y.dtype), groups=4
    ),
}


@pytest.mark.parametrize("case", PADS_NOTHING)
def test_padding_by_nothing_at_the_traced_size_counts_as_padding(net, randomise_, kill_, case):
    """14 and 21 are multiples of 7: neither the trace nor the certificate's second size sees a padded pixel."""
    model = reader(net, randomise_, kill_, lambda m, y: PADS_NOTHING[case](y), b=conv(4, 5, 3))
    result = compact(model, (torch.randn(1, 3, 14, 14, dtype=torch.float64),))
    with torch.no_grad():
        for size in (14, 9, 15, 20, 28):
            x = torch.randn(1, 3, size, size, dtype=torch.float64)
            torch.testing.assert_close(result.model(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [12, 13, 16])
def test_padding_to_a_whole_stride_as_tensorflow_does(net, randomise_, kill_, compact_exactly, size):
    """``same`` padding computed from the input's size: another border at every size."""

    def op(m, y):
        rows, columns = ((-(-s // 2) - 1) * 2 + 3 - s for s in y.shape[2:])
        return F.pad(y, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))

    model = reader(net, randomise_, kill_, op, b=conv(4, 5, 3, stride=2))
    inputs = [torch.randn(1, 3, s, s + 1, dtype=torch.float64) for s in (size, 7, 10, 13, 16)]
    result = compact_exactly(model, *inputs)
    assert width(result, "a") in (2, 3)  # 0 leaves; one constant carries the other, or both stay


@pytest.mark.parametrize("size", [8, 9, 14, 15])
def test_a_branch_on_the_input_size_hides_padding(net, randomise_, kill_, compact_exactly, size):
    """``if H % 2: pad`` is no part of a trace at an even size: constants must agree at two sizes of either parity."""

    def op(m, y):
        return F.pad(y, (0, 0, 0, 1)) if y.shape[2] % 2 else y

    model = reader(net, randomise_, kill_, op, b=conv(4, 5, 3))
    inputs = [torch.randn(1, 3, s, s, dtype=torch.float64) for s in (size, 8, 9)]
    assert width(compact_exactly(model, *inputs), "a") in (2, 3)


def test_a_branch_on_the_input_size_hides_another_op(net, randomise_, kill_, compact_exactly):
    """Not only padding: at odd sizes this network adds a number, and the constants are others."""
    model = reader(net, randomise_, kill_, lambda m, y: y + 1 if y.shape[2] % 2 else y)
    compact_exactly(model, SMALL, LARGE)
    compact_exactly(model, LARGE, SMALL)


@pytest.mark.parametrize("factor", [lambda s: 2 if s % 2 else 1, lambda s: 1 / s], ids=["parity", "size"])
def test_a_number_that_follows_the_input_size_makes_no_constant(net, randomise_, kill_, compact_exactly, factor):
    """The same operations at every size, with another number: what is 1.5 here is 3 there. 0 is 0 everywhere."""
    model = reader(net, randomise_, kill_, lambda m, y: y * factor(y.shape[2]))
    for x, other in ((SMALL, LARGE), (LARGE, SMALL)):
        assert width(compact_exactly(model, x, other), "a") == 3


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: F.hardsigmoid(x.mean((1, 2, 3), keepdim=True) + 3.5),
        lambda x: 1 + F.relu(x.mean((1, 2, 3), keepdim=True) - 1),
        lambda x: torch.minimum(x.amax((1, 2, 3), keepdim=True), torch.ones((), dtype=x.dtype)),
    ],
    ids=["hard sigmoid", "relu", "minimum"],
)  # fmt: skip
def test_a_gate_of_other_sizes_that_is_open_on_most_images_is_no_constant(
    net, randomise_, kill_, compact_exactly, gate
):
    """At odd sizes the network reads its image's mean, and random images open the gate: seen to be 1, not proved."""

    def run(m, x):
        y = F.relu(m.a(x))
        return m.head(m.b(y * gate(x) if x.shape[2] % 2 else y).mean((2, 3)))

    model = randomise_(net(run, a=conv(3, 4, 1), b=conv(4, 5, 1), head=nn.Linear(5, 2)))
    kill_(kill_(model.a, [0], 1.5), [1], 0.4)
    small = compact_exactly(model, SMALL, LARGE).model
    with torch.no_grad():
        for mean in (0.0, -1.0, -3.0, 3.0):
            for x in (SMALL + mean, LARGE + mean):
                torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prefer", ["class", "graph"])
@pytest.mark.parametrize("op", [lambda y: F.pad(y, (1, 1, 1, 1)), lambda y: y * 2], ids=["padding", "a factor"])
def test_a_branch_that_only_large_images_take(net, randomise_, kill_, prefer, op):
    """Of the sizes that are tried, one: constants hold at the others, and say nothing about it."""
    model = reader(net, randomise_, kill_, lambda m, y: op(y) if y.shape[2] >= 16 else y, b=conv(4, 5, 3))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = compact(model, (x,), prefer=prefer).model
    with torch.no_grad():
        for size in (8, 13, 16, 20):
            image = torch.randn(2, 3, size, size, dtype=torch.float64)
            if prefer == "graph" and size != 8:
                with pytest.raises(ValueError, match="takes inputs of 3 x 8 x 8 alone"):
                    small(image)
            else:
                torch.testing.assert_close(small(image), model(image), rtol=1e-10, atol=1e-10)


def test_a_buffer_that_forward_replaces_is_that_of_the_original(net, randomise_, kill_):
    """Networks are run on the way; the one that is returned must not be."""

    def run(m, y):
        m.count = m.count + 1
        return y

    model = reader(net, randomise_, kill_, run)
    model.register_buffer("count", torch.zeros((), dtype=torch.float64))
    result = compact(model, (SMALL,))
    assert float(result.model.count) == float(model.count) == 0
    assert width(result, "a") < 4


def test_a_layer_of_constants_alone_costs_a_float32_network_nothing(net, randomise_, kill_):
    """The constant of a float32 layer is rounded; the comparison in float64 computes its own."""

    def run(m, x):
        return m.head(m.b(F.relu(m.a(x)) + torch.sigmoid(m.d(F.relu(m.c(x))))).mean((2, 3)))

    torch.manual_seed(0)
    model = randomise_(
        net(run, a=conv(3, 4, 1), b=conv(4, 5, 1), c=conv(3, 6, 1), d=conv(6, 4, 1), head=nn.Linear(5, 2))
    )
    for channel in range(6):
        kill_(model.c, [channel], 0.1 + 0.37 * channel)
    reports = [compact(model.to(dtype), (SMALL.to(dtype),)).report for dtype in (torch.float64, torch.float32)]
    assert reports[0].params_after == reports[1].params_after < reports[0].params_before
    assert reports[0].constant_layers == reports[1].constant_layers == ("c", "d")
    assert reports[1].max_exact_error < 1e-12


def test_what_the_last_comparison_finds_is_kept_and_nothing_else(net, randomise_, kill_, compact_exactly):
    """At odd sizes alone this network computes with its number of channels: no trace at an even size shows it."""
    model = reader(
        net, randomise_, kill_, lambda m, y: m.c(y * y.shape[1] if y.shape[2] % 2 else y), alive=(0, 1, 3), c=conv(4, 4)
    )
    kill_(model.c, [2])
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "c")) == (4, 3)
    assert result.report.kept["a"] == "1 channel: without it the network returns something else"


# --- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("slopes", [1, 4])
def test_constants_of_any_precision_meet_parameters_of_any(net, randomise_, kill_, dtype, slopes):
    """Constants flow in float64, parameters are what they are: ``prelu``, for one, refuses to promote."""
    layers = {"bn": nn.BatchNorm2d(4), "act": nn.PReLU(slopes)}
    model = reader(net, randomise_, kill_, lambda m, y: m.act(m.bn(y)), alive=(ZERO, ALIVE), **layers).to(dtype)
    expected = model.act(model.bn(model.a(SMALL[:1].to(dtype))))[0, :2, 0, 0].double()
    tolerance = 4 * torch.finfo(dtype).eps
    claims = claimed(model, SMALL.to(dtype))[:2]
    torch.testing.assert_close(claims, expected.detach(), rtol=tolerance, atol=tolerance)
    result = compact(model, (SMALL.to(dtype),))
    assert width(result, "a") == 2
    assert {p.dtype for p in result.model.parameters()} == {dtype}


@pytest.mark.parametrize(
    "op", [lambda y: (y * 10).floor(), lambda y: F.hardshrink(y * 10, 7 - 1e-8)], ids=["floor", "hardshrink"]
)
def test_a_jump_between_two_precisions(net, randomise_, kill_, op):
    """10 * float32(0.7) is 7 in float32 and 6.9999999 in float64: a floor of it differs by one."""
    model = reader(net, randomise_, kill_, lambda m, y: op(y)).float()
    model.a.bias.data[POSITIVE] = 0.7
    result = compact(model, (SMALL.float(),))
    with torch.no_grad():
        torch.testing.assert_close(result.model(LARGE.float()), model(LARGE.float()), rtol=1e-5, atol=1e-5)


MASKS = {
    "bool buffer": (torch.tensor([True, False, True, True]), lambda y, m: y * m.view(-1, 1, 1)),
    "where of a buffer": (torch.tensor([True, False, True, True]), lambda y, m: torch.where(m.view(-1, 1, 1), y, 0.0)),
    "integer buffer": (torch.tensor([2, 0, 1, 3]), lambda y, m: y * m.view(-1, 1, 1)),
    "float32 buffer": (torch.tensor([0.5, 0.0, 1.0, 2.0]), lambda y, m: y * m.view(-1, 1, 1)),
    "masked_fill": (torch.tensor([False, True, False, False]), lambda y, m: y.masked_fill(m.view(-1, 1, 1), 0.0)),
}


@pytest.mark.parametrize("case", MASKS)
def test_buffers_of_other_types_mask_channels(net, randomise_, kill_, compact_exactly, case):
    """A mask is a bool, an integer or another precision's buffer: claims about it hold all the same."""
    values, op = MASKS[case]
    model = reader(net, randomise_, kill_, lambda m, y: op(y, m.mask), alive=range(4))
    model.register_buffer("mask", values)
    check_claims(model)
    compact_exactly(model, SMALL, LARGE)


def test_overflow_is_unknown(net, randomise_, kill_):
    """exp(1500) is infinite: no number to fold, and infinity times a zero weight is no 0."""
    model = reader(net, randomise_, kill_, lambda m, y: torch.exp(1000 * y) * 0.5)
    torch.testing.assert_close(claimed(model), f64(NAN, 0, 0.5, NAN), equal_nan=True)


# --- randomness, state, size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [F.dropout, F.dropout2d, F.alpha_dropout], ids=lambda f: f.__name__)
def test_dropout_that_insists_on_training_proves_nothing(net, randomise_, kill_, drop):
    """Monte-Carlo dropout is active in evaluation mode: a constant in, noise out; no network can be certified."""
    model = reader(net, randomise_, kill_, lambda m, y: drop(y, 0.5, True))
    claims = claimed(model)
    assert claims[[POSITIVE, NEGATIVE, ALIVE]].isnan().all()
    with pytest.raises((VerificationError, ModelError), match="differ"):
        compact(model, (SMALL,))


def test_a_stochastic_layer_in_training_mode_is_judged_in_evaluation_mode(net, randomise_, kill_, compact_exactly):
    """The model arrives in training mode, with dropout and BatchNorm on: what counts is evaluation."""
    model = reader(
        net, randomise_, kill_, lambda m, y: m.drop(m.bn(y)), bn=nn.BatchNorm2d(4), drop=nn.Dropout2d(0.5)
    ).train()
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 1


def stays_equal(model, small, calls=3):
    """Call after call, from the same state."""
    buffers = dict(small.named_buffers())
    for name, buffer in model.named_buffers():
        buffers[name].copy_(buffer)
    with torch.no_grad():
        for _ in range(calls):
            torch.testing.assert_close(small(LARGE), model(LARGE), rtol=1e-10, atol=1e-10)


def test_a_buffer_that_forward_writes_is_no_constant(net, randomise_, kill_):
    """A running mean that is updated in evaluation mode too: its value today proves nothing."""

    def op(m, y):
        m.seen.copy_(0.5 * m.seen + 0.5 * y.mean().detach())
        return torch.cat((y[:, :-1], y[:, :1] + m.seen), 1)

    model = reader(net, randomise_, kill_, op)
    model.register_buffer("seen", torch.zeros((), dtype=torch.float64))
    stays_equal(model, compact(model, (SMALL,)).model)


def test_a_gate_that_opens_after_many_calls(net, randomise_, kill_):
    """A warm-up: shut for the first hundred calls, as far as the certificate can see for ever."""

    def op(m, y):
        z = y * (m.gate + F.relu(m.calls - 100))
        m.calls.add_(1)
        return z

    model = reader(net, randomise_, kill_, op, alive=(0, 1, 3))
    model.register_buffer("gate", torch.tensor([0.0, 1, 1, 1], dtype=torch.float64).view(4, 1, 1))
    model.register_buffer("calls", torch.zeros((), dtype=torch.float64))
    small = compact(model, (SMALL,)).model
    model.calls.fill_(200)
    small.calls.fill_(200)
    with torch.no_grad():
        torch.testing.assert_close(small(LARGE), model(LARGE), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", ["write first", "read first"])
def test_a_gate_read_from_a_buffer_that_forward_writes(net, randomise_, kill_, order):
    """The buffer is 0 now and closes the gate; after the first call it is open."""

    def op(m, y):
        if order == "write first":
            m.gate.add_(1)
        z = y * m.gate
        if order == "read first":
            m.gate.add_(1)
        return z

    model = reader(net, randomise_, kill_, op)
    model.register_buffer("gate", torch.zeros((), dtype=torch.float64))
    try:
        small = compact(model, (SMALL,)).model
    except CompressError:  # a refusal in words is no silent error
        return
    stays_equal(model, small)


@pytest.mark.parametrize(
    "op",
    [
        lambda y, one, other: y * (one + other),
        lambda y, one, other: y * (one & other),
        lambda y, one, other: y * (one.to(torch.uint8) * 200 + other.to(torch.uint8) * 200),
        lambda y, one, other: y * (one.half() * 0.1) * (other.half() * 0.3),
    ],
    ids=["bool sum", "bool product", "integer overflow", "half precision"],
)
def test_arithmetic_of_other_types_is_no_arithmetic_in_double(net, randomise_, kill_, compact_exactly, op):
    """True + True is True, 200 + 200 is 144 in a byte: constants flow in float64, and must not pretend."""
    model = reader(net, randomise_, kill_, lambda m, y: op(y, m.one, m.other))
    model.register_buffer("one", torch.ones(4, 1, 1, dtype=torch.bool))
    model.register_buffer("other", torch.ones(4, 1, 1, dtype=torch.bool))
    check_claims(model)
    compact_exactly(model, SMALL, LARGE)
