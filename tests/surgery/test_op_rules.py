"""One small network for each op: dead channels leave it in both forms, and the outputs stay what they were."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.graph import channel_graph
from compress.surgery import compact
from small_networks import pooled

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, 3, 11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gated(m, x):
    y = F.relu(m.a(x))
    gate = m.b(y.mean((2, 3), keepdim=True)).sigmoid()
    return pooled(m, m.c(y * gate.expand_as(y)))


def scaled(m, x):
    y = m.a(x)
    return pooled(m, m.c(y * m.gamma.expand_as(y)))


def windows(m, x):
    y = F.relu(m.a(x)).unfold(2, 2, 2).unfold(3, 2, 2)
    return pooled(m, m.c(y.amax((-2, -1))))


def rectified_in_part(m, x):
    y = m.a(x)
    y.chunk(2, 1)[0].relu_()
    return pooled(m, m.c(y))


def written_in_part(m, x):
    y = m.a(x)
    y[:, :, 0] = y[:, :, 1]
    return pooled(m, m.c(y))


def without_autocast(m, x):
    y = F.relu(m.a(x))
    with torch.autocast("cpu", enabled=False):
        left, right = y.sigmoid(), m.b(y)
    return pooled(m, m.c(left * right))


def without_gradient(m, x):
    y = m.a(x)
    with torch.no_grad():
        gate = m.b(y.mean((2, 3), keepdim=True)).sigmoid()
    return pooled(m, m.c(y * gate))


NETWORKS = {
    run.__name__: run
    for run in (
        gated,
        scaled,
        windows,
        rectified_in_part,
        written_in_part,
        without_autocast,
        without_gradient,
    )
}

SPLIT = {"rectified_in_part"}
"""What a class can't lose unevenly."""


@pytest.mark.parametrize("prefer", ["class", "graph"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_dead_leaves(net, randomise_, kill_free_, compact_exactly, name, prefer):
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(8, 6, 1), "head": nn.Linear(6, 2)}
    model = net(NETWORKS[name], **layers)
    if name == "scaled":
        model.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1))
    randomise_(model)
    killed = kill_free_(model, X, shift=0.3)
    assert any(bool(rows.any()) for rows in killed.values())
    result = compact_exactly(model, X, OTHER, prefer=prefer)
    assert result.report.form == prefer
    if prefer == "graph" or name not in SPLIT:
        state = result.model.state_dict()
        for weight, rows in killed.items():
            if weight in state:  # else nothing reads it, or all of it is constant
                assert state[weight].shape[0] == int((~rows).sum())


@pytest.mark.parametrize("shape", [[8, 8], [8]])
def test_a_layer_norm_over_space_keeps_channels_apart(net, randomise_, shape):
    model = randomise_(
        net(
            lambda m, x: pooled(m, m.norm(m.a(x))), a=nn.Conv2d(3, 8, 1), norm=nn.LayerNorm(shape), head=nn.Linear(8, 2)
        )
    )
    graph = channel_graph(model, (X,))
    assert bool(graph.free()[graph.classes.parameters["a.weight"][0]].all())


def test_a_layer_norm_over_channels_is_a_statistic_of_them(net, randomise_):
    def run(m, x):
        return m.head(m.norm(m.a(x).permute(0, 2, 3, 1)).mean((1, 2)))

    model = randomise_(net(run, a=nn.Conv2d(3, 8, 1), norm=nn.LayerNorm(8), head=nn.Linear(8, 2)))
    graph = channel_graph(model, (X,))
    reasons = {graph.classes.reasons[c][0] for c in graph.classes.parameters["a.weight"][0].tolist()}
    assert reasons == {"layer_norm: a statistic over channels (at norm)"}


def test_channels_that_nobody_reads_leave_through_a_layer_norm_over_space(net, randomise_, compact_exactly):
    model = net(
        lambda m, x: pooled(m, m.norm(m.a(x))), a=nn.Conv2d(3, 8, 1), norm=nn.LayerNorm([8, 8]), head=nn.Linear(8, 2)
    )
    randomise_(model)
    nn.init.normal_(model.norm.weight), nn.init.normal_(model.norm.bias)
    model.head.weight.data[:, [1, 4, 5]] = 0
    for prefer in ("class", "graph"):
        assert compact_exactly(model, X, prefer=prefer).report.layers["a"].after == 5


def test_autocast_that_is_enabled_is_no_part_of_an_exact_network(net, randomise_):
    """It computes in another precision: what enters it stays, by name."""

    def run(m, x):
        y = m.a(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.b(y)
        return pooled(m, y.to(x.dtype))

    model = randomise_(net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 6, 1), head=nn.Linear(6, 2)))
    graph = channel_graph(model, (X,))
    (reason,) = {graph.classes.reasons[c][0] for c in graph.classes.parameters["a.weight"][0].tolist()}
    assert reason.startswith("wrap_with_autocast has no rule")


@pytest.mark.parametrize("dead", [[1], [0, 3], [2, 5]])
@pytest.mark.parametrize("prefer", ["class", "graph"])
def test_a_channel_that_forward_picks_by_its_number_stays_that_channel(net, dead, prefer):
    """``x[:, 1]`` is another channel where one before it was cut."""

    def run(m, x):
        y = m.a(x) + 0
        y[:, 1].mul_(3)
        return m.head(y.mean((2, 3)))

    torch.manual_seed(0)
    model = net(run, a=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 2)).double().eval()
    with torch.no_grad():
        model.a.weight[dead] = 0
        model.a.bias[dead] = 0.3
    result = compact(model, (X[:1],), prefer=prefer)
    if prefer == "graph":
        assert result.report.layers["a"].after == 6 - len(dead)
    for x in (X, OTHER):
        assert (model(x) - result.model(x)).abs().max() <= 1e-10 * model(x).abs().max()


@pytest.mark.usefixtures("no_second_try")
@pytest.mark.parametrize("prefer", ["class", "graph"])
def test_channels_of_one_class_are_not_taken_for_each_other(net, prefer):
    """Both channels that stay are of one class; by its number ``forward`` means the first of them."""

    def run(m, x):
        left, right = m.a(x).chunk(2, 1)
        y = torch.cat((left, left + right), 1)
        y[:, 1].mul_(3)
        return m.head(y.mean((2, 3)))

    torch.manual_seed(0)
    model = net(run, a=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 2)).double().eval()
    with torch.no_grad():
        model.a.weight[[0, 2, 3, 5]] = 0
        model.a.bias[[0, 2, 3, 5]] = 0
    result = compact(model, (X[:1],), prefer=prefer)
    assert result.report.layers["a"].after == (6 if prefer == "class" else 2)
    for x in (X, OTHER):
        assert (model(x) - result.model(x)).abs().max() <= 1e-10 * model(x).abs().max()


def half_dead_in_front_of(net, run, cast=False):
    """Three dead channels with constants in front of an op, and a 1x1 convolution behind it."""
    torch.manual_seed(0)

    def whole(m, x):
        y = x.to(m.a.weight.dtype) / 64 if cast else x
        return m.b(run(m, F.relu(m.a(y))))

    model = net(whole, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 5, 1)).double().eval()
    with torch.no_grad():
        model.a.weight[[1, 3, 4]] = 0
        model.a.bias[[1, 3, 4]] = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    return model


def pad_odd(m, y):
    h, w = y.shape[2:]
    return F.avg_pool2d(F.pad(y, (0, w % 2, 0, h % 2)) if h % 2 or w % 2 else y, 2)


SIZE_DEPENDENT = {
    "odd sizes are padded": (pad_odd, (5, 7, 12)),
    "even sizes alone, divided by the size": (
        lambda m, y: (F.interpolate(F.avg_pool2d(y, 2), scale_factor=2) + y) / y.shape[-1],
        (12, 16),
    ),
    "a limit that follows the size": (lambda m, y: y.clamp(max=y.shape[-1] / 16), (4, 5, 13)),
    "another limit": (lambda m, y: torch.minimum(y, torch.ones_like(y) * y.shape[-1] / 16), (4, 5, 13)),
    "a part of a mask": (lambda m, y: y * m.mask[:, :, : y.shape[2], : y.shape[3]], (13, 20, 24)),
    "the number of samples": (lambda m, y: y / y.shape[0], (8,)),
}


@pytest.mark.parametrize("integers", [False, True], ids=["float", "uint8"])
@pytest.mark.parametrize("case", SIZE_DEPENDENT.values(), ids=SIZE_DEPENDENT.keys())
def test_constants_that_follow_the_size_are_none(net, case, integers):
    run, sizes = case
    model = half_dead_in_front_of(net, run, cast=integers)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    mask[:, :, 16:] = 0.5
    model.register_buffer("mask", mask)

    def images(batch, size):
        drawn = torch.rand(batch, 3, size, size, dtype=torch.float64)
        return (255 * drawn).to(torch.uint8) if integers else drawn

    result = compact(model, (images(1, 8),))
    for size in sizes:
        for batch in (1, 3):
            x = images(batch, size)
            assert (model(x) - result.model(x)).abs().max() <= 1e-10 * model(x).abs().max()


def test_a_count_of_made_entries_is_a_count_of_channels(net):
    """With an example of zeros alone no comparison of outputs sees it."""
    model = half_dead_in_front_of(net, lambda m, y: y * torch.ones(m.a.weight.shape[0]).sum(), cast=True)
    with torch.no_grad():
        model.a.bias.zero_()
    result = compact(model, (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),))
    x = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    assert (model(x) - result.model(x)).abs().max() <= 1e-10 * model(x).abs().max()


def test_nan_among_the_arguments_is_no_difference(net):
    model = half_dead_in_front_of(net, lambda m, y: y.masked_fill(y > 1e9, float("nan")))
    assert compact(model, (X[:1],)).report.params_before > 0


def test_a_functional_layer_in_a_module_of_its_own_is_no_crash(net):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8, 1, 1, dtype=torch.float64))

        def forward(self, y):
            return F.conv2d(y, self.weight).mean((2, 3))

    def run(m, x):
        y = F.relu(m.a(x))
        return m.b(m.head(y * y.shape[-1]))

    torch.manual_seed(0)
    model = net(run, a=nn.Conv2d(3, 8, 1), head=Head(), b=nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model.a.weight[[1, 3]] = 0
        model.a.bias[[1, 3]] = 0.4
    result = compact(model, (X[:1],))
    for x in (X, OTHER):
        assert (model(x) - result.model(x)).abs().max() <= 1e-10 * model(x).abs().max()
