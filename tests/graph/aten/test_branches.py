"""Constants over branches: known where every position along a dimension is a channel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.surgery import compact

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, 3, 11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def branches(m, x):
    """Selective kernels: two branches, weighed for each channel by a softmax over both."""
    y = torch.stack([F.relu(m.a(x)), F.relu(m.b(x))], 1)
    weights = m.select(F.relu(m.reduce(y.sum(1).mean((2, 3), keepdim=True))))
    y = y * weights.view(len(x), 2, -1, 1, 1).softmax(1)
    return m.head(y.sum(1).mean((2, 3)))


def network(net, run):
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "reduce": nn.Conv2d(8, 4, 1)}
    return net(run, **layers, select=nn.Conv2d(4, 16, 1), head=nn.Linear(8, 2)).double()


def kill(model, channels):
    """Dead in every layer, with constants other than 0."""
    with torch.no_grad():
        for layer, rows in (
            (model.a, channels),
            (model.b, channels),
            (model.select, [*channels, *(8 + c for c in channels)]),
        ):
            layer.weight[rows] = 0
            layer.bias[rows] = torch.linspace(0.2, 0.7, len(rows), dtype=torch.float64)


@pytest.mark.parametrize("prefer", ["class", "graph"])
def test_split_attention_loses_its_dead_channels(net, prefer):
    model = network(net, branches).eval()
    kill(model, [1, 4, 6])
    result = compact(model, (X,), prefer=prefer)
    assert [result.report.layers[name].after for name in ("a", "b", "select")] == [5, 5, 10]
    for x in (X, OTHER):
        assert (model(x) - result.model(x)).abs().max() <= 1e-10 * model(x).abs().max()


def test_sums_and_softmax_over_space_are_not_known(net):
    """A softmax of equal values over 64 pixels is 1 / 64, over 66 pixels 1 / 66."""

    def run(m, x):
        y = torch.stack([F.relu(m.a(x)), F.relu(m.b(x))], 1).sum(1)
        y = y.flatten(2).softmax(2).amax(2)[..., None, None] + y.sum((2, 3), keepdim=True)
        return m.head(m.select(m.reduce(y))[:, :8].mean((2, 3)))

    model = network(net, run).eval()
    kill(model, [1, 4, 6])
    result = compact(model, (X,))
    assert result.report.layers["a"].after == 8
    for x in (X, OTHER):
        assert (model(x) - result.model(x)).abs().max() <= 1e-10 * model(x).abs().max()
