"""Layers used twice, and tensors that two layers hold: folded once and cut together, or kept with the reason."""

import torch
import torch.nn.functional as F
from torch import nn

from small_networks import conv, pooled, width

SMALL, LARGE = (torch.randn(2, 3, size, size + 1, dtype=torch.float64) for size in (11, 16))


def test_a_shared_layer_folds_where_both_uses_see_the_same(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        return pooled(m, F.relu(m.b(F.relu(m.a(x))) + m.b(F.relu(m.c(x)))))

    model = randomise_(net(run, a=conv(3, 4), c=conv(3, 4), b=conv(4, 5), head=nn.Linear(5, 2)))
    kill_(model.a, [0, 1], 0.5)
    kill_(model.c, [0, 1], 0.5)
    model.c.bias.data[1] = 0.6
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "c")) == (3, 3)
    assert [fold["inputs"] for fold in result.plan.folds] == [[0]]
    assert "cannot be folded" in result.report.kept["a"]


def test_a_shared_layer_without_bias_gets_none(net, randomise_, kill_, compact_exactly):
    """Two uses, two BatchNorms: a constant has no place to go; zeros leave."""

    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, F.relu(m.first(m.b(y)) + m.second(m.b(y.flip(2)))))

    norms = {"first": nn.BatchNorm2d(5), "second": nn.BatchNorm2d(5)}
    model = randomise_(net(run, a=conv(3, 4), b=conv(4, 5, bias=False), **norms, head=nn.Linear(5, 2)))
    kill_(model.a, [0], 0.5)
    kill_(model.a, [1], 0.0)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 3
    assert result.plan.new_biases == ()


def test_a_shared_block_is_cut_once(net, randomise_, kill_, compact_exactly):
    model = randomise_(
        net(
            lambda m, x: pooled(m, F.relu(m.b(F.relu(m.b(F.relu(m.a(x))))))),
            a=conv(3, 4),
            b=conv(4, 4),
            head=nn.Linear(4, 2),
        )
    )
    kill_(model.a, [1, 2])
    kill_(model.b, [1, 2])
    result = compact_exactly(model, SMALL, LARGE)
    assert tuple(result.model.b.weight.shape[:2]) == (2, 2)


def test_tied_weights_are_cut_together_and_stay_tied(net, randomise_, kill_, compact_exactly):
    model = randomise_(
        net(
            lambda m, x: pooled(m, F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))))),
            a=conv(3, 4),
            b=conv(4, 4, padding=1),
            c=conv(4, 4, padding=1),
            head=nn.Linear(4, 2),
        )
    )
    model.c.weight = model.b.weight
    for layer in (model.a, model.b, model.c):
        kill_(layer, [1, 2])
    result = compact_exactly(model, SMALL, LARGE)
    assert result.model.b.weight is result.model.c.weight
    assert (result.model.c.in_channels, result.model.c.out_channels) == (2, 2)


def test_a_bias_of_two_layers_takes_no_constant_of_one(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, F.relu(m.b(y)) + F.relu(m.c(x)))

    model = randomise_(net(run, a=conv(3, 6), b=conv(6, 5), c=conv(3, 5, 5), head=nn.Linear(5, 2)))
    model.c.bias = model.b.bias
    kill_(model.a, [0, 1], 0.5)
    kill_(model.a, [2], 0.0)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 5
    assert result.model.b.bias is result.model.c.bias
    assert result.report.kept["a"].startswith("2 channels: ")


def test_a_shared_bias_of_dead_outputs_takes_no_constant_either(net, randomise_, kill_, compact_exactly):
    """Every output of b and c is constant; the one that stays still needs the inputs that made it so."""

    def run(m, x):
        return pooled(m, torch.sigmoid(m.b(m.a(x))) + torch.tanh(m.c(m.a(x) * 2))) + x.mean((1, 2, 3))[:, None]

    model = randomise_(net(run, a=conv(3, 4), b=conv(4, 5), c=conv(4, 5), head=nn.Linear(5, 2)))
    model.c.bias = model.b.bias
    kill_(model.a, list(range(4)), 0.5)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "b") == 1
    assert width(result, "a") == 4


def test_uses_of_a_dead_shared_layer_with_other_constants(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = m.a(x)
        return pooled(m, m.c(torch.cat((m.b(y), m.b(y + 1)), 1))) + x.mean((1, 2, 3))[:, None]

    model = randomise_(net(run, a=conv(3, 4), b=conv(4, 3), c=conv(6, 5), head=nn.Linear(5, 2)))
    kill_(model.a, list(range(4)), 0.5)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "b") == 1
