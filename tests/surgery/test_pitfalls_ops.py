"""Pitfalls of single ops: each of them moved, mixed or counted channels in a way that was once mistaken for another.

The network is always conv ``a`` (8 channels) -> ReLU -> the op -> 1x1 conv ``b`` -> ReLU -> average -> linear ``head``;
channels 1 and 5 of ``a`` are 0. Either they leave, or they stay with the reason: never is the result another function.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ModelError
from compress.graph import channel_graph
from compress.surgery import compact
from small_networks import width

SMALL, LARGE = (
    torch.randn(n, 3, size, size + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    for n, size in ((2, 10), (1, 14))
)
DEAD = [1, 5]
LEAVE, STAY = 6, 8  # what is left of the 8 channels


def conv(inputs, outputs, kernel=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


def through(net, randomise_, kill_, op, *, read=8, dead=DEAD, value=0.0, **layers):
    """The network of this file around ``op(m, y)``, which gives ``read`` channels."""
    torch.manual_seed(0)
    model = net(
        lambda m, x: m.head(F.relu(m.b(op(m, F.relu(m.a(x))))).mean((2, 3))),
        **{"a": conv(3, 8, 3), "b": conv(read, 5), "head": nn.Linear(5, 2), **layers},
    )
    kill_(randomise_(model).a, dead, value)
    return model


def square(y):
    """``[N, C]`` as an image of one pixel."""
    return y[:, :, None, None]


def shuffle(y, groups):
    n, c, h, w = y.shape
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


# --- movement: executed as it is ------------------------------------------------------------------------------------

MOVES = {
    "view": (lambda m, y: y.view(*y.shape[:2], -1, 1), 8),
    "view with a free size": (lambda m, y: y.view(y.shape[0], -1, *y.shape[2:]), 8),
    "reshape": (lambda m, y: y.reshape(*y.shape[:2], y.shape[3], y.shape[2]), 8),
    "permute": (lambda m, y: y.permute(0, 2, 3, 1).flip(1).permute(0, 3, 1, 2), 8),
    "transpose": (lambda m, y: y.transpose(2, 3), 8),
    "movedim": (lambda m, y: y.movedim(1, -1).movedim(-1, 1), 8),
    "swapaxes": (lambda m, y: y.swapaxes(1, 2).swapaxes(1, 2), 8),
    "t": (lambda m, y: square(y.mean((2, 3)).t().flip(1).t()), 8),
    "cat": (lambda m, y: torch.cat((y, y.flip(2)), 1), 16),
    "cat over space": (lambda m, y: torch.cat((y, y.flip(2)), 2), 8),
    "stack": (lambda m, y: torch.stack((y, y.flip(2)), 2).flatten(1, 2), 16),
    "split": (lambda m, y: torch.cat(y.split(y.shape[1] // 2, 1)[::-1], 1), 8),
    "split over space": (lambda m, y: torch.cat(y.split(3, 2)[::-1], 2), 8),
    "chunk": (lambda m, y: torch.cat(y.chunk(2, 1)[::-1], 1), 8),
    "unbind over space": (lambda m, y: torch.stack(y.unbind(2)[::-1], 2), 8),
    "slice": (lambda m, y: y[:, :, ::2, 1:], 8),
    "slices of channels": (lambda m, y: torch.cat((y[:, y.shape[1] // 2 :], y[:, : y.shape[1] // 2]), 1), 8),
    "select": (lambda m, y: y[:, :, 0].unsqueeze(2), 8),
    "narrow": (lambda m, y: y.narrow(2, 1, 3), 8),
    "flatten": (lambda m, y: y.flatten(2).unsqueeze(-1), 8),
    "unflatten": (lambda m, y: y.flatten(2).unflatten(2, y.shape[2:]), 8),
    "squeeze": (lambda m, y: y.unsqueeze(1).squeeze(1), 8),
    "expand": (lambda m, y: y.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4), 8),
    "expand_as": (lambda m, y: y.mean((2, 3), keepdim=True).expand_as(y), 8),
    "repeat": (lambda m, y: y.repeat(1, 2, 1, 1), 16),
    "repeat over space": (lambda m, y: y.repeat(1, 1, 2, 1), 8),
    "repeat_interleave": (lambda m, y: y.repeat_interleave(2, 1), 16),
    "roll": (lambda m, y: y.roll((1, 2), (2, 3)), 8),
    "roll of channels": (lambda m, y: y.roll(1, 1), 8),
    "flip of channels": (lambda m, y: y.flip(1), 8),
    "pixel_unshuffle": (lambda m, y: F.pixel_unshuffle(y, 2), 32),
    "channel_shuffle": (lambda m, y: F.channel_shuffle(y, 2), 8),
    "shuffle by hand": (lambda m, y: shuffle(y, 2), 8),
    "pad with zeros": (lambda m, y: F.pad(y, (1, 2, 0, 1)), 8),
    "reflected pad": (lambda m, y: F.pad(y, (1, 2, 0, 1), mode="reflect"), 8),
    "repeated pad": (lambda m, y: F.pad(y, (1, 2, 0, 1), mode="replicate"), 8),
    "circular pad": (lambda m, y: F.pad(y, (1, 2, 0, 1), mode="circular"), 8),
    "negative pad": (lambda m, y: F.pad(y, (-1, 0, -2, 0)), 8),
    "nearest upsampling": (lambda m, y: F.interpolate(y, scale_factor=2, mode="nearest"), 8),
    "diagonal": (lambda m, y: y.diagonal(0, 2, 3).unsqueeze(-1), 8),
    "unfold": (lambda m, y: y.unfold(2, 2, 2).amax(-1), 8),
    "view_as": (lambda m, y: y.flatten(2).view_as(y), 8),
    "reshape_as": (lambda m, y: y.transpose(2, 3).reshape_as(y), 8),
    "patches as tokens and back": (
        lambda m, y: (
            y.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1).mean((3, 4)).permute(0, 3, 1, 2)
        ),
        8,
    ),
    "index along space": (lambda m, y: y[:, :, [0, 2, 5]], 8),
    "index_select along space": (lambda m, y: y.index_select(2, torch.tensor([0, 2, 5])), 8),
}


@pytest.mark.parametrize("case", MOVES)
def test_ops_that_move_data_carry_their_labels(net, randomise_, case):
    """No rule for any of them: the very op runs on the labels. Held against what a single live channel reaches."""
    op, read = MOVES[case]
    torch.manual_seed(0)
    model = randomise_(net(lambda m, x: m.b(op(m, m.a(x))), a=conv(3, 8, 3), b=conv(read, 5)))
    graph = channel_graph(model, (SMALL,))
    written, reads = graph.classes.parameters["a.weight"][0], graph.classes.parameters["b.weight"][1]
    assert written.unique().numel() == 8
    assert graph.free()[written].all()
    with torch.no_grad():
        y = model.a(SMALL)
        for channel in range(8):
            alone = torch.zeros_like(y)
            alone[:, channel] = y[:, channel]
            reached = (op(model, alone) != 0).transpose(0, 1).flatten(1).any(1)
            assert torch.equal(reads == written[channel], reached)


@pytest.mark.parametrize(
    "case", ["permute", "chunk", "unbind over space", "pixel_unshuffle", "shuffle by hand", "diagonal"]
)
def test_dead_channels_leave_through_ops_that_move_data(net, randomise_, kill_, compact_exactly, case):
    """One of each half, so that halves stay equal."""
    op, read = MOVES[case]
    result = compact_exactly(through(net, randomise_, kill_, op, read=read), SMALL, LARGE)
    assert width(result, "a") == LEAVE
    assert result.model.b.in_channels == read * LEAVE // STAY


LITERALS = {
    "view": lambda m, y: y.view(-1, 8, *y.shape[2:]),
    "view of everything": lambda m, y: square(m.squeeze(y.view(-1, 8 * 8 * 10))),
    "split": lambda m, y: torch.cat(y.split(4, 1)[::-1], 1),
    "split_with_sizes": lambda m, y: torch.cat(y.split([3, 5], 1)[::-1], 1),
    "expand": lambda m, y: y.mean((2, 3), keepdim=True).expand(-1, 8, 4, 4),
    "slices": lambda m, y: torch.cat((y[:, 3:8], y[:, 0:3]), 1),
    "index list": lambda m, y: y[:, [7, 6, 5, 4, 3, 2, 1, 0]],
    "index buffer": lambda m, y: y[:, m.order],
    "select": lambda m, y: torch.stack([y[:, c] for c in (7, 1, 2, 3, 0, 4, 5, 6)], 1),
}


@pytest.mark.parametrize("case", LITERALS)
def test_a_literal_number_of_channels_in_forward_is_no_silent_error(net, randomise_, kill_, compact_exactly, case):
    """A class can't be told to index other channels: they stay with a reason, or the function would be another."""
    model = through(net, randomise_, kill_, LITERALS[case])
    model.register_buffer("order", torch.tensor([7, 2, 5, 4, 3, 1, 0, 6]))
    if case == "view of everything":
        model.squeeze = nn.Linear(640, 8).double()
    result = compact_exactly(model, SMALL)
    assert width(result, "a") == STAY
    assert result.report.kept["a"].startswith("2 channels: ")


@pytest.mark.parametrize("dead", [[2, 6, 7], [4, 5, 6, 7]], ids=str)
@pytest.mark.parametrize(
    "op",
    [
        lambda m, y: shuffle(y, 2),
        lambda m, y: F.channel_shuffle(y, 4),
        lambda m, y: torch.cat(y.chunk(2, 1)[::-1], 1),
        lambda m, y: torch.cat(y.tensor_split(3, 1)[::-1], 1),
        lambda m, y: (lambda p: torch.cat((p[0] * torch.sigmoid(p[1]), p[1]), 1))(y.chunk(2, 1)),
        lambda m, y: y.unflatten(1, (2, -1)).sum(1).repeat(1, 2, 1, 1),
    ],
    ids=["shuffle", "channel_shuffle", "swapped chunks", "tensor_split", "gated chunks", "sum of halves"],
)
def test_uneven_removal_runs_and_mixes_the_wrong_channels(net, randomise_, kill_, compact_exactly, op, dead):
    """Shuffles and chunks run with any even number of channels: only the type check sees that others meet."""
    result = compact_exactly(through(net, randomise_, kill_, op, dead=dead), SMALL, LARGE)
    assert 8 - len(dead) <= width(result, "a") <= 8


@pytest.mark.parametrize("dead", [[1], [0, 1, 2, 3]], ids=str)
def test_pixel_shuffle_makes_one_channel_of_four(net, randomise_, kill_, compact_exactly, dead):
    """What was channels varies over space: one of four can't leave without the others."""
    model = through(net, randomise_, kill_, lambda m, y: F.pixel_shuffle(y, 2), read=2, dead=dead)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == STAY
    assert result.report.kept["a"].startswith(f"{len(dead)} channel")


# --- ignored: no channel changes ------------------------------------------------------------------------------------

IGNORED = {
    "contiguous": lambda m, y: y.transpose(2, 3).contiguous(),
    "channels last": lambda m, y: y.contiguous(memory_format=torch.channels_last),
    "clone": lambda m, y: y.clone(),
    "detach": lambda m, y: y.detach(),
    "dropout": lambda m, y: m.dropout(y),
    "dropout of channels": lambda m, y: F.dropout2d(y, 0.5, False),
    "to the same": lambda m, y: y.to(torch.float64),
    "identity": lambda m, y: nn.Identity()(y),
    "integer arithmetic": lambda m, y: y[:, :, : (y.shape[2] * 3 + 1) // 4],
    "numel": lambda m, y: y.view(y.shape[0], y.shape[1], y.numel() // (y.shape[0] * y.shape[1]), 1),
    "assertion": lambda m, y: y if torch._check(y.shape[2] > 1) is None else None,
}


@pytest.mark.parametrize("case", IGNORED)
def test_ops_that_change_no_channel(net, randomise_, kill_, compact_exactly, case):
    """Copies, casts, assertions and sizes hold no channel back."""
    model = through(net, randomise_, kill_, IGNORED[case], dropout=nn.Dropout(0.3))
    assert width(compact_exactly(model, SMALL, LARGE), "a") == LEAVE


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float16, 2100), (torch.bfloat16, 300), (torch.uint8, 300)])
def test_labels_are_never_cast(net, randomise_, kill_, compact_exactly, dtype, channels):
    """Half precision knows 2048 integers, bfloat16 256: labels that go through a cast would meet strangers."""
    op, dead = (lambda m, y: y.to(dtype).to(torch.float64)), [channels - 1, channels - 3]
    layers = {"a": conv(3, channels), "b": conv(channels, 5)}
    model = through(net, randomise_, kill_, op, read=channels, dead=dead, **layers)
    x = SMALL[:1, :, :2, :2]
    graph = channel_graph(model, (x,))
    assert graph.classes.parameters["a.weight"][0].unique().numel() == channels
    assert width(compact_exactly(model, x), "a") in (channels, channels - 2)


# --- elementwise ----------------------------------------------------------------------------------------------------

_FUNCTIONS = (
    "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh tanh softplus softsign "
    "logsigmoid tanhshrink hardshrink softshrink"
)
_METHODS = "exp expm1 log1p sqrt abs neg square sin cos erf sign reciprocal sigmoid tanh relu"
UNARY = {
    **{f"F.{name}": (lambda y, name=name: getattr(F, name)(y)) for name in _FUNCTIONS.split()},
    **{name: (lambda y, name=name: getattr(y + 1.1, name)()) for name in _METHODS.split()},
    "threshold": lambda y: F.threshold(y, 0.1, 0.2),
    "clamp": lambda y: y.clamp(-0.5, 0.5),
    "clamp_min": lambda y: y.clamp_min(0.1),
    "pow": lambda y: y**2,
    "numbers": lambda y: 1 - (y * 2 + 3) / 4,
    "comparison": lambda y: (y > 0.1) * y,
    "where": lambda y: torch.where(y > 0, y, -y),
    "masked_fill": lambda y: y.masked_fill(y > 0.3, 0.3),
    "in place": lambda y: y.mul(1).add_(1).relu_().clamp_(max=2),
}


@pytest.mark.parametrize("case", UNARY)
def test_elementwise_ops_hold_no_channel_back(net, randomise_, case):
    """Each channel stays a class of its own, free to leave."""
    model = randomise_(net(lambda m, x: m.b(UNARY[case](m.a(x))), a=conv(3, 8), b=conv(8, 5)))
    graph = channel_graph(model, (SMALL,))
    classes = graph.classes.parameters["a.weight"][0]
    assert classes.unique().numel() == 8
    assert bool(graph.free()[classes].all()), graph.classes.reasons


BINARY = {
    "add": lambda y, z: y + z,
    "add in place": lambda y, z: (y * 1).add_(z),
    "add with a factor": lambda y, z: torch.add(y, z, alpha=0.5),
    "sub": lambda y, z: y - z,
    "rsub": lambda y, z: torch.rsub(y, z),
    "mul": lambda y, z: y * z,
    "div": lambda y, z: y / (z.abs() + 1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max": torch.max,
    "where": lambda y, z: torch.where(y > 0, y, z),
    "condition": lambda y, z: torch.where(z > 0, y, 0.1),
    "masked_fill": lambda y, z: y.masked_fill(z > 0, 0.0),
    "comparison": lambda y, z: (y < z).to(y.dtype),
    "addcmul": lambda y, z: torch.addcmul(y, y, z),
    "lerp": lambda y, z: torch.lerp(y, z, 0.3),
    "gate of one pixel": lambda y, z: y * torch.sigmoid(z.mean((2, 3), keepdim=True)),
    "clamp by a tensor": lambda y, z: y.clamp(max=z),
}


@pytest.mark.parametrize("case", BINARY)
def test_channels_that_meet_belong_together(net, randomise_, case):
    """Whatever the op is: channel i of one and channel i of the other are one class, or both are kept."""
    model = net(lambda m, x: m.b(BINARY[case](m.a(x), m.c(x))), a=conv(3, 8), c=conv(3, 8), b=conv(8, 5))
    graph = channel_graph(randomise_(model), (SMALL,))
    dims = (("a.weight", 0), ("c.weight", 0), ("b.weight", 1))
    a, c, read = (graph.classes.parameters[name][dim] for name, dim in dims)
    together = torch.equal(a, c) and torch.equal(a, read)
    assert together or not bool(graph.free()[torch.cat((a, c, read))].any())


PARAMETERS = {
    "layer scale": ((8, 1, 1), lambda y, p: y * p),
    "shift": ((1, 8, 1, 1), lambda y, p: y + p),
    "vector through view": ((8,), lambda y, p: y * p.view(1, -1, 1, 1)),
    "vector through unsqueeze": ((8,), lambda y, p: y * p[:, None, None]),
    "expanded": ((8, 1, 1), lambda y, p: y * p.expand_as(y)),
    "channels last": ((8,), lambda y, p: (y.permute(0, 2, 3, 1) * p).permute(0, 3, 1, 2)),
    "transposed": ((1, 8), lambda y, p: y * p.t()[..., None]),
    "chunks of one": ((16, 1, 1), lambda y, p: y * p.chunk(2)[0] + p.chunk(2)[1]),
    "softplus of it": ((8, 1, 1), lambda y, p: y * F.softplus(p)),
    "one number": ((), lambda y, p: y * p),
    "one number of shape 1": ((1,), lambda y, p: y * p),
    "one number with dimensions": ((1, 1, 1), lambda y, p: y * p),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_parameter_in_arithmetic_is_cut_with_its_channel(net, randomise_, kill_, compact_exactly, case):
    """Movement ops on parameters are free too: addresses flow where values do."""
    shape, op = PARAMETERS[case]
    model = through(net, randomise_, kill_, lambda m, y: op(y, m.p))
    p = torch.rand(shape, dtype=torch.float64) + 0.5
    if case in ("shift", "chunks of one"):  # a shift would make a constant of the 0
        p.view(-1, 8)[-1, DEAD] = 0
    model.p = nn.Parameter(p)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == LEAVE
    assert result.model.p.numel() == (p.numel() if p.numel() == 1 else p.numel() * LEAVE // STAY)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 8, 10)], ids=["channels", "channels and positions"])
def test_a_buffer_is_cut_along_its_channels_only(net, randomise_, kill_, compact_exactly, shape, persistent):
    """A table of positions: channels along one dimension, pixels along the others."""
    model = through(net, randomise_, kill_, lambda m, y: y * m.table)
    model.register_buffer("table", torch.rand(shape, dtype=torch.float64), persistent=persistent)
    result = compact_exactly(model, SMALL)
    assert width(result, "a") == LEAVE
    assert torch.equal(result.model.table, model.table[[0, 2, 3, 4, 6, 7]])


# --- reductions and statistics over channels ------------------------------------------------------------------------

WITHIN = {
    "mean": lambda m, y: y.mean((2, 3), keepdim=True),
    "sum": lambda m, y: y.sum((2, 3), keepdim=True) / 100,
    "amax": lambda m, y: y.amax((2, 3), keepdim=True),
    "amin": lambda m, y: y.amin(3, keepdim=True),
    "max pool": lambda m, y: F.max_pool2d(y, 3, 2, 1),
    "max pool with ceil": lambda m, y: F.max_pool2d(y, 3, 2, 1, ceil_mode=True),
    "average pool": lambda m, y: F.avg_pool2d(y, 3, 2, 1),
    "adaptive pools": lambda m, y: F.adaptive_avg_pool2d(y, 3) + F.adaptive_max_pool2d(y, (3, 1)),
    "bilinear": lambda m, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bicubic": lambda m, y: F.interpolate(y, size=(5, 7), mode="bicubic"),
    "batch norm": lambda m, y: m.bn(y) * 0 + y,
    "softmax over space": lambda m, y: y * y.flatten(2).softmax(-1).view_as(y),
    "instance norm": lambda m, y: F.instance_norm(y),
    "layer norm over space": lambda m, y: F.layer_norm(y, y.shape[2:]),
    "standard deviation over space": lambda m, y: y.std((2, 3), keepdim=True),
    "norm over space": lambda m, y: y.norm(dim=(2, 3), keepdim=True),
    "values and indices of max": lambda m, y: y.flatten(2).max(2)[0][..., None, None],
}


@pytest.mark.parametrize("case", WITHIN)
def test_statistics_within_a_channel_hold_none_back(net, randomise_, kill_, compact_exactly, case):
    """Only along dimensions in which the labels vary is a statistic one over channels."""
    model = through(net, randomise_, kill_, WITHIN[case], bn=nn.BatchNorm2d(8))
    assert width(compact_exactly(model, SMALL, LARGE), "a") == LEAVE


ACROSS = {
    "mean": lambda m, y: y - y.mean(1, keepdim=True),
    "mean of everything": lambda m, y: y - y.mean(),
    "sum": lambda m, y: y + y.sum(1, keepdim=True),
    "amax": lambda m, y: y + (y + 1).amax(1, keepdim=True),
    "spatial attention": lambda m, y: y * torch.sigmoid(m.one(y.mean(1, keepdim=True))),
    "argmax": lambda m, y: y + y.argmax(1, keepdim=True),
    "cumsum": lambda m, y: y.cumsum(1),
    "sort": lambda m, y: y.sort(1)[0],
    "topk": lambda m, y: y.topk(8, 1)[0],
    "variance": lambda m, y: y / (1 + y.var(1, keepdim=True)),
    "prod": lambda m, y: y + (y + 1).prod(1, keepdim=True),
    "softmax": lambda m, y: y.softmax(1),
    "log_softmax": lambda m, y: y.log_softmax(1),
    "softmax2d": lambda m, y: nn.Softmax2d()(y),
    "logsumexp": lambda m, y: y - y.logsumexp(1, keepdim=True),
    "normalize": lambda m, y: F.normalize(y, dim=1),
    "vector norm": lambda m, y: y / (1 + y.norm(dim=1, keepdim=True)),
    "layer norm": lambda m, y: m.ln(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "layer norm by function": lambda m, y: F.layer_norm(y, y.shape[1:]),
    "group norm": lambda m, y: m.gn(y),
    "group norm of one group": lambda m, y: F.group_norm(y, 1),
    "rms norm": lambda m, y: F.rms_norm(y.permute(0, 2, 3, 1), (y.shape[1],)).permute(0, 3, 1, 2),
    "local response norm": lambda m, y: F.local_response_norm(y, 3),
    "efficient channel attention": lambda m, y: (
        y * torch.sigmoid(m.eca(y.mean((2, 3)).unsqueeze(1))).view(-1, y.shape[1], 1, 1)
    ),
    "max pool over channels": lambda m, y: F.max_pool3d(y.unsqueeze(1), (2, 1, 1)).squeeze(1).repeat(1, 2, 1, 1),
    "fourier transform": lambda m, y: torch.fft.fft(y, dim=1).real,
    "covariance": lambda m, y: square((y.flatten(2) @ y.flatten(2).transpose(1, 2)).mean(2) / 100),
    "gram by einsum": lambda m, y: square(torch.einsum("nchw,ndhw->ncd", y, y).mean(2) / 100),
    "attention over pixels": lambda m, y: (
        lambda t: F.scaled_dot_product_attention(t, t, t).transpose(1, 2).unflatten(2, y.shape[2:])
    )(y.flatten(2).transpose(1, 2)),
    "attention over channels": lambda m, y: F.scaled_dot_product_attention(*[y.flatten(2)] * 3).unflatten(
        2, y.shape[2:]
    ),
    "outer product": lambda m, y: square(torch.bmm(y.mean((2, 3))[:, :, None], y.mean((2, 3))[:, None]).mean(2)),
    "bilinear layer": lambda m, y: square(m.bilinear(y.mean((2, 3)), y.mean((2, 3)))),
    "cosine": lambda m, y: y * F.cosine_similarity(y, y.flip(2), dim=1).unsqueeze(1),
    "distance": lambda m, y: y + torch.cdist(y.flatten(2).transpose(1, 2), y.flatten(2).transpose(1, 2)).mean(),
}


def across(net, randomise_, kill_, case):
    return through(
        net, randomise_, kill_, ACROSS[case], one=conv(1, 1, 3, padding=1), ln=nn.LayerNorm(8), gn=nn.GroupNorm(4, 8),
        eca=nn.Conv1d(1, 1, 3, padding=1, bias=False), bilinear=nn.Bilinear(8, 8, 8),
    )  # fmt: skip


@pytest.mark.parametrize("case", ACROSS)
def test_statistics_over_channels_change_when_one_leaves(net, randomise_, kill_, case):
    """Means, softmax, norms, products: even a dead channel counts, so none is free to leave."""
    graph = channel_graph(across(net, randomise_, kill_, case), (SMALL,))
    assert not graph.free()[graph.classes.parameters["a.weight"][0]].any()


@pytest.mark.parametrize("case", ["layer norm", "spatial attention", "efficient channel attention", "covariance"])
def test_networks_with_statistics_over_channels_come_back_whole(net, randomise_, kill_, compact_exactly, case):
    """Kept, certified, no error."""
    assert width(compact_exactly(across(net, randomise_, kill_, case), SMALL, LARGE), "a") == STAY


@pytest.mark.parametrize("dead", [[1, 5], [2, 3, 6], [4, 5]], ids=str)
@pytest.mark.parametrize("reduce", [torch.amax, torch.mean], ids=["largest", "mean"])
def test_a_statistic_over_pairs_of_channels(net, randomise_, kill_, compact_exactly, reduce, dead):
    """Maxout: a pair may leave whole, half of one may not."""
    model = through(net, randomise_, kill_, lambda m, y: reduce(y.unflatten(1, (-1, 2)), 2), read=4, dead=dead)
    alone = sum(c ^ 1 not in dead for c in dead)
    assert 8 - len(dead) + alone <= width(compact_exactly(model, SMALL, LARGE), "a") <= 8


@pytest.mark.parametrize("case", ["layer norm", "group norm", "softmax", "covariance", "gram by einsum", "cumsum"])
def test_the_reason_names_the_op(net, randomise_, kill_, compact_exactly, case):
    """A pin without a reason would be a guess in silence."""
    named = {"layer norm": "layer_norm", "group norm": "group_norm", "covariance": "matmul", "gram by einsum": "einsum"}
    model = across(net, randomise_, kill_, case)
    assert named.get(case, case) in compact_exactly(model, SMALL).report.kept["a"]


# --- contractions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": 1}, {"stride": 2, "padding": 1, "output_padding": 1}], ids=str
)
def test_transposed_convolutions_have_their_weight_the_other_way_round(
    net, randomise_, kill_, compact_exactly, options
):
    """``[in, out, kernel]``: cut along the wrong dimension it would even fit where both are equally many."""
    model = through(net, randomise_, kill_, lambda m, y: F.relu(m.up(y)), up=nn.ConvTranspose2d(8, 8, 3, **options))
    with torch.no_grad():
        model.up.weight[:, [0, 2, 3]] = 0
        model.up.bias[[0, 2, 3]] = 0
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), result.model.b.in_channels) == (6, 5)
    assert result.model.up.weight.shape == (6, 5, 3, 3)
    assert torch.equal(result.model.up.weight, model.up.weight[[0, 2, 3, 4, 6, 7]][:, [1, 4, 5, 6, 7]])
    assert (result.model.up.in_channels, result.model.up.out_channels) == (6, 5)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}], ids=str)
@pytest.mark.parametrize("groups", [2, 8], ids=["two groups", "depthwise"])
def test_grouped_transposed_convolutions(net, randomise_, kill_, compact_exactly, groups, options):
    """``[in, out / groups, kernel]``: outputs of all groups share the second dimension of the weight."""
    up = nn.ConvTranspose2d(8, 16, 3, groups=groups, **options)
    model = through(net, randomise_, kill_, lambda m, y: F.relu(m.up(y)), read=16, up=up)
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), result.model.up.in_channels) == (6, 6)


@pytest.mark.parametrize(
    ("kind", "norm", "dims"),
    [(nn.Conv1d, nn.BatchNorm1d, 1), (nn.Conv2d, nn.BatchNorm2d, 2), (nn.Conv3d, nn.BatchNorm3d, 3)],
    ids=["1d", "2d", "3d"],
)
@pytest.mark.parametrize("value", [0.0, 0.4])
def test_convolutions_of_every_dimension(net, randomise_, kill_, compact_exactly, kind, norm, dims, value):
    """The channel dimension counts from the end: unbatched or with one, two, three dimensions of space."""
    torch.manual_seed(0)
    model = randomise_(
        net(
            lambda m, x: m.head(F.relu(m.b(F.relu(m.bn(m.a(x))))).flatten(2).mean(2)),
            a=kind(3, 8, 3),
            bn=norm(8),
            b=kind(8, 5, 3),
            head=nn.Linear(5, 2),
        )
    )
    kill_(model.bn, DEAD, value)
    model.double()  # randomise_ knows no three-dimensional ones
    small, large = (torch.randn(2, 3, *[size] * dims, dtype=torch.float64) for size in (7, 8))
    result = compact_exactly(model, small, large)
    assert (width(result, "a"), result.model.b.in_channels, result.model.bn.num_features) == (6, 6, 6)
    assert len(result.plan.folds) == (1 if value else 0)


def test_convolutions_of_unbatched_images(net, randomise_, kill_, compact_exactly):
    """Without a batch dimension channels are the first, not the second."""
    layers = {"a": conv(3, 8, 3), "b": conv(8, 5), "head": nn.Linear(5, 2)}
    model = randomise_(net(lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).mean((1, 2))), **layers))
    kill_(model.a, DEAD, 0.3)
    assert width(compact_exactly(model, SMALL[0], LARGE[0]), "a") == LEAVE


GROUPED = {"zero": 0.0, "constant": 0.4}


@pytest.mark.parametrize("value", GROUPED.values(), ids=GROUPED)
@pytest.mark.parametrize("padding", [0, 1])
def test_grouped_convolutions_lose_equally_many_of_each_group(net, randomise_, kill_, compact_exactly, value, padding):
    """Group g reads inputs 4g to 4g + 3: its own two dead ones are gathered out of its own rows of the weight."""
    op, g = (lambda m, y: F.relu(m.g(y))), conv(8, 6, 3, groups=2, padding=padding)
    model = through(net, randomise_, kill_, op, dead=[1, 6], value=value, read=6, g=g)
    kill_(model.g, [0, 5])
    result = compact_exactly(model, SMALL, LARGE)
    if value and padding:
        assert width(result, "a") in (6, 8)  # one carrier in each group: nothing to gain from one dead channel
        return
    assert (width(result, "a"), width(result, "g")) == (6, 4)
    assert result.model.g.weight.shape == (4, 3, 3, 3)
    assert (result.model.g.groups, result.model.g.in_channels, result.model.g.out_channels) == (2, 6, 4)
    expected = torch.cat((model.g.weight[[1, 2]][:, [0, 2, 3]], model.g.weight[[3, 4]][:, [0, 1, 3]]))
    assert torch.equal(result.model.g.weight, expected)


@pytest.mark.parametrize("dead", [[1], [1, 2], [0, 1, 2, 3], [0, 1, 2, 4]], ids=str)
def test_grouped_convolutions_with_unequal_groups_keep_what_has_no_partner(
    net, randomise_, kill_, compact_exactly, dead
):
    """Three dead inputs of one group and one of the other: at most one of each can leave."""
    model = through(net, randomise_, kill_, lambda m, y: F.relu(m.g(y)), dead=dead, read=6, g=conv(8, 6, 3, groups=2))
    result = compact_exactly(model, SMALL, LARGE)
    gone, uneven = 8 - width(result, "a"), abs(sum(4 if d < 4 else -4 for d in dead)) // 4
    assert gone <= len(dead) - uneven or width(result, "g") == 3  # a group that leaves whole needs no partner
    assert gone == len(dead) or "a" in result.report.kept


LINEAR = {
    "F.linear": (lambda m, y: F.linear(y, m.fc.weight, m.fc.bias), LEAVE),
    "on tokens": (lambda m, y: m.fc(y[:, None].expand(-1, 3, -1)).mean(1), LEAVE),
    "matmul": (lambda m, y: y @ m.fc.weight.t() + m.fc.bias, STAY),
    "addmm": (lambda m, y: torch.addmm(m.fc.bias, y, m.fc.weight.t()), STAY),
    "einsum": (lambda m, y: torch.einsum("nc,dc->nd", y, m.fc.weight), STAY),
    "matmul from the left": (lambda m, y: (m.fc.weight @ y.t()).t(), STAY),
    "1x1 convolution of its weight": (lambda m, y: F.conv2d(square(y), m.fc.weight[..., None, None]).flatten(1), STAY),
}


@pytest.mark.parametrize("case", LINEAR)
def test_matrix_products_by_other_names_are_at_least_kept(net, randomise_, kill_, compact_exactly, case):
    """What is no convolution or linear layer may hold channels back, but not be passed over."""
    op, left = LINEAR[case]
    model = through(net, randomise_, kill_, lambda m, y: square(op(m, y.mean((2, 3)))), fc=nn.Linear(8, 8))
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") in (LEAVE, left)
    assert width(result, "a") == LEAVE or "a" in result.report.kept


MATRIX = {
    "features": lambda m, y: square(F.relu(y.mean((2, 3)) @ m.matrix)),
    "tokens": lambda m, y: F.relu(torch.matmul(y.flatten(2).transpose(1, 2), m.matrix)).transpose(1, 2)[..., None],
    "mm": lambda m, y: square(F.relu(torch.mm(y.mean((2, 3)), m.matrix))),
}
"""A matrix of parameters, ``[in, out]``, on the right of a product."""


@pytest.mark.parametrize("value", [0.0, 0.7], ids=["zero", "constant"])
@pytest.mark.parametrize("prefer", ["class", "graph"])
@pytest.mark.parametrize("case", MATRIX)
def test_a_matrix_of_parameters_is_a_linear_layer_the_other_way_round(
    net, randomise_, kill_, compact_exactly, case, prefer, value
):
    """Rows go with what it reads, columns with what reads it; it has no bias that could take up a constant."""
    model = through(net, randomise_, kill_, MATRIX[case], value=value)
    model.matrix = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    model.matrix.data[:, [0, 2, 3]] = 0
    model.matrix.data[DEAD, 0] = 0.5
    result = compact_exactly(model, SMALL, LARGE, prefer=prefer)
    cut = dict(result.model.named_parameters())["matrix"]
    if value:
        assert cut.shape == (STAY, 5)  # column 0, a constant too, leaves: ``b`` behind it has a bias
        assert "its constant reaches a layer in a form that cannot be folded" in result.report.kept["a"]
    else:
        assert torch.equal(cut, model.matrix[[0, 2, 3, 4, 6, 7]][:, [1, 4, 5, 6, 7]])


def test_a_matrix_of_parameters_that_is_read_from_both_sides_stays(net, randomise_, kill_, compact_exactly):
    """Its rows are outputs of one use and inputs of the other."""
    model = through(net, randomise_, kill_, lambda m, y: square(F.linear(F.relu(y.mean((2, 3)) @ m.matrix), m.matrix)))
    model.matrix = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == STAY
    assert "a" in result.report.kept


@pytest.mark.parametrize("call", [lambda y: F.glu(y, 1), lambda y: nn.GLU(1)(y)], ids=["function", "module"])
def test_gated_linear_units_halve_the_channels(net, randomise_, kill_, compact_exactly, call):
    """Channel i is gated by channel i + C/2: they leave in pairs."""
    model = through(net, randomise_, kill_, lambda m, y: call(m.c(y)), c=conv(8, 8), read=4)
    kill_(model.c, [1])  # its gate, channel 5, is alive
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "c"), result.model.b.in_channels) == (6, 3)


def test_gated_linear_units_are_exact_however_they_are_cut(net, randomise_, kill_, compact_exactly):
    """A dead gate alone is a factor 1/2, no 0."""
    model = through(net, randomise_, kill_, lambda m, y: F.glu(m.c(y), 1), c=conv(8, 8), read=4)
    kill_(model.c, [2, 4, 7])
    compact_exactly(model, SMALL, LARGE)


def test_features_of_an_embedding_leave_by_column(net, randomise_, compact_exactly):
    """``[words, features]``: the channels are along the second dimension, the words never leave."""
    layers = {"a": nn.Embedding(11, 8, dtype=torch.float64), "b": nn.Linear(8, 5), "head": nn.Linear(5, 2)}
    model = randomise_(net(lambda m, x: m.head(F.relu(m.b(m.a(x))).mean(1)), **layers))
    model.a.weight.data[:, DEAD] = 0
    result = compact_exactly(model, torch.arange(6).reshape(2, 3), torch.arange(10).reshape(2, 5))
    assert result.model.a.weight.shape == (11, 6)
    assert (result.model.a.embedding_dim, result.model.a.num_embeddings) == (6, 11)


# --- normalisation, created tensors, the rest -----------------------------------------------------------------------


def test_created_tensors_couple_and_hold_nothing(net, randomise_, kill_, compact_exactly):
    """Zeros, fills and ranges belong to no channel: two channels that meet the same one are still strangers."""
    model = through(
        net,
        randomise_,
        kill_,
        lambda m, y: (
            torch.cat((y + y.new_zeros(1, 1, 1, 1), y * torch.ones_like(y) + torch.full_like(y, 0.0)), 1)
            * torch.arange(1, y.shape[3] + 1, dtype=y.dtype)
        ),
        read=16,
    )
    classes = (graph := channel_graph(model, (SMALL,))).classes.parameters["a.weight"][0]
    assert classes.unique().numel() == 8
    assert graph.free()[classes].all()
    compact_exactly(model, SMALL, LARGE)


@pytest.mark.parametrize(
    "op",
    [
        lambda y: y + torch.zeros_like(y),
        lambda y: y + y.new_zeros(()),
        lambda y: torch.cat((y, y.new_zeros(y.shape)), 2),
    ],
    ids=["zeros_like", "new_zeros", "zeros beside it"],
)
def test_zero_plus_zeros_is_zero(net, randomise_, kill_, compact_exactly, op):
    """What a created tensor holds is known."""
    model = through(net, randomise_, kill_, lambda m, y: op(y))
    assert width(compact_exactly(model, SMALL, LARGE), "a") == LEAVE


COUNTS = {
    "root": lambda y: y * y.shape[1] ** -0.5,
    "module attribute": lambda y: y,
    "clamp": lambda y: y.clamp(max=y.shape[1] / 20),
    "divisor of a pooling": lambda y: F.avg_pool2d(y, 2, divisor_override=y.shape[1]),
    "scale of an interpolation": lambda y: F.interpolate(y, scale_factor=y.shape[1] / 4, mode="bilinear"),
    "lifted tensor": lambda y: y * torch.tensor(1 / y.shape[1], dtype=y.dtype),
    "filled tensor": lambda y: y * torch.full((1,), 1 / y.shape[1], dtype=y.dtype),
    "range": lambda y: y * torch.arange(1, y.shape[1] + 1, dtype=y.dtype).view(1, -1, 1, 1),
    "linspace": lambda y: y * torch.linspace(0.5, 1, y.shape[1], dtype=y.dtype).view(1, -1, 1, 1),
    "ramp by cumsum": lambda y: y * torch.ones_like(y[:1, :, :1, :1]).cumsum(1),
    "loop over channels": lambda y: sum((y * 0.1 for _ in range(y.shape[1])), y),
    "number of rows": lambda y: y[:, :, : y.shape[1]],
    "kernel of a pooling": lambda y: F.max_pool2d(y, y.shape[1] // 2),
    "dilation": lambda y: F.max_pool2d(y, 2, 1, 0, y.shape[1] // 4),
    "shift of a roll": lambda y: y.roll(y.shape[1], 2) * torch.arange(y.shape[2], dtype=y.dtype).view(-1, 1),
    "rank of a mask": lambda y: y.masked_fill(torch.arange(y.shape[2]).view(-1, 1) < y.shape[1] - 2, 0),
    "triangle": lambda y: y * torch.ones(*y.shape[2:], dtype=y.dtype).tril(y.shape[1] - 8),
}


@pytest.mark.parametrize("case", COUNTS)
def test_numbers_that_follow_the_number_of_channels(net, randomise_, kill_, compact_exactly, case):
    """``x * C**-0.5`` is another function with fewer channels, though it runs: they stay, and nothing raises."""
    op = COUNTS[case] if case != "module attribute" else (lambda y: y / model.a.out_channels)
    model = through(net, randomise_, kill_, lambda m, y: op(y))
    if case == "module attribute":
        model.run = lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)) / m.a.out_channels)).mean((2, 3)))
    model.b.weight.data[2], model.b.bias.data[2] = 0, 0
    result = compact_exactly(model, SMALL)
    assert width(result, "a") == STAY
    assert width(result, "b") == 4  # what comes behind is cut all the same


@pytest.mark.parametrize(
    "op",
    [
        lambda y: y.logcumsumexp(2),
        lambda y: torch.special.i0(y),
        lambda y: torch.fft.rfft2(y).abs(),
        lambda y: F.unfold(y, 3).unflatten(1, (y.shape[1], -1)).mean(2).unsqueeze(-1),
        lambda y: F.grid_sample(y, torch.zeros(y.shape[0], 4, 4, 2, dtype=y.dtype), align_corners=False),
    ],
    ids=["logcumsumexp", "i0", "rfft2", "im2col", "grid sample"],
)
def test_ops_without_a_rule_keep_their_channels_under_their_name(net, randomise_, kill_, compact_exactly, op):
    """Never guess in silence: what is not in the tables is kept, and the report names it."""
    result = compact_exactly(through(net, randomise_, kill_, lambda m, y: op(y)), SMALL)
    assert width(result, "a") == STAY
    assert "no rule" in result.report.kept["a"]


SEQUENCES = {
    "lstm": lambda m, y: m.lstm(y.mean(2).transpose(1, 2))[0].transpose(1, 2)[..., None],  # short: traced step by step
    "attention": lambda m, y: m.mha(*[y.flatten(2).transpose(1, 2)] * 3)[0].transpose(1, 2)[..., None],
    "transformer layer": lambda m, y: m.layer(y.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None],
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_layers_over_sequences_come_back_whole(net, randomise_, kill_, compact_exactly, case):
    """Their sizes stand in their code, and some run as one fused op in evaluation mode."""
    layers = {
        "lstm": nn.LSTM(8, 8, batch_first=True),
        "mha": nn.MultiheadAttention(8, 2, batch_first=True),
        "layer": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    }
    model = through(net, randomise_, kill_, SEQUENCES[case], **layers)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == STAY


def test_imaginary_numbers_are_no_error(net, randomise_, kill_, compact_exactly):
    """``1j`` is no float."""
    compact_exactly(through(net, randomise_, kill_, lambda m, y: (y * 1j).abs()), SMALL)


def test_a_size_that_depends_on_values_is_refused_in_words(net, randomise_, kill_):
    """Export accepts it; no label can have such a shape."""
    model = through(net, randomise_, kill_, lambda m, y: y[(y > 0).flatten(1).any(1)])
    with pytest.raises(ModelError):
        compact(model, (SMALL,))
