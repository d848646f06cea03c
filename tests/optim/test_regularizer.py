"""The four lines in a loop of one's own, and what the regularizer tells about the result."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.errors import ConfigError
from compress.groups import GRANULARITIES, Groups, GroupSlice
from compress.optim import GROUP_WEIGHTS, LayerSparsity, Regularizer
from compress.penalties import L0, L1, PENALTIES, GroupwisePenalty, LayerwisePenalty

Parts = Callable[[Groups, Callable[[GroupSlice], Tensor]], list[list[Tensor]]]

SUM_TOLERANCE = 1e-5
"""Relative difference of float32 sums taken in another order."""

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
}


class Net(nn.Module):
    """A residual block: 6 inner channels, 8 of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer, self.outer_norm = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = x + self.outer_norm(self.outer(self.inner_norm(self.inner(x)).relu()))
        logits: Tensor = self.classifier(x.relu().mean((2, 3)))
        return logits


CONVOLUTIONS = ["stem", "inner", "outer"]
LAYERS = {
    "weight": [*CONVOLUTIONS, "classifier"],
    "kernel": CONVOLUTIONS,
    "filter": CONVOLUTIONS,
    "channel": ["inner", "outer", "classifier"],
    "bn-scale": ["stem_norm", "inner_norm", "outer_norm"],
    "coupled": CONVOLUTIONS,
}

ZERO: dict[str, Callable[[Tensor], Tensor]] = {
    "weight": lambda w: w == 0,
    "kernel": lambda w: (w == 0).flatten(2).all(2),
    "filter": lambda w: (w == 0).flatten(1).all(1),
    "channel": lambda w: (w == 0).transpose(0, 1).flatten(1).all(1),
    "bn-scale": lambda w: w == 0,
    "coupled": lambda w: (w == 0).flatten(1).all(1),
}
"""Granularity -> which of a layer's groups are zero, from its weight."""

PULLING = [name for name, cls in PENALTIES.items() if cls.pulls]
QUICK = ("l1-over-l2", "mcp")
"""Penalties on a whole layer and on each group: the others on coupled channels are slow, and differ by their prox."""

EXAMPLE = (torch.zeros(1, 1, 8, 8),)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def regularizer(
    net: Net, penalty: str, granularity: str, strength: float, group_weights: str | None = None
) -> Regularizer:
    return Regularizer(net, penalty, granularity, strength, example_inputs=EXAMPLE, group_weights=group_weights)


def train(net: Net, reg: Regularizer, optimizer: torch.optim.Optimizer, n: int) -> None:
    random = torch.Generator().manual_seed(1)
    for _ in range(n):
        x = torch.randn(16, 1, 8, 8, generator=random)
        labels = torch.randint(0, 3, (16,), generator=random)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
        reg.prox_(optimizer)


def calibrate(reg: Regularizer, optimizer: torch.optim.Optimizer, net: Net, share: float) -> None:
    """Double the strength until about that share of the groups dies: no magic number for each optimiser."""
    reg.strength = 1e-6
    while reg.dead_share() < share:
        assert reg.strength < 1e6
        reg.strength *= 2
        train(net, reg, optimizer, 2)


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer_name", "penalty", "granularity"),
    [
        *((optimizer, penalty, granularity) for optimizer in OPTIMIZERS for penalty in ("l0", "group-lasso")
          for granularity in ("weight", "coupled")),
        *(("sgd", penalty, "filter") for penalty in PENALTIES),
        # sparse group lasso zeroes filters whose BatchNorm scale lives: more zeros than dead groups
        *(
            pytest.param("rmsprop", penalty, "coupled", marks=[pytest.mark.slow] * (penalty not in QUICK))
            for penalty in PENALTIES
            if penalty != "sparse-group-lasso"
        ),
        *(("adam", penalty, "weight") for penalty in PENALTIES),
        *(("rmsprop", "l1", granularity) for granularity in GRANULARITIES),
    ],
)  # fmt: skip
def test_the_loop_makes_exact_zeros_and_counts_them(
    net: Net, optimizer_name: str, penalty: str, granularity: str
) -> None:
    optimizer, reg = OPTIMIZERS[optimizer_name](net), regularizer(net, penalty, granularity, 0.0)
    train(net, reg, optimizer, 2)
    assert reg.dead_share() == 0.0
    calibrate(reg, optimizer, net, 0.3)

    counted = reg.sparsity()
    assert list(counted) == LAYERS[granularity]
    modules = dict(net.named_modules())
    for name, found in counted.items():
        zero = ZERO[granularity](modules[name].weight.detach())
        assert found == LayerSparsity(int(zero.sum()), zero.numel())
    assert all(bool(p.isfinite().all()) for p in net.parameters())

    if granularity == "coupled":  # the 8 channels of the stream stand in two layers
        assert counted["stem"] == counted["outer"]
        dead, count = counted["stem"].dead + counted["inner"].dead, 14
        gone = (net.inner.weight == 0).flatten(1).all(1)
        for tensor in (net.inner.bias, net.inner_norm.weight, net.inner_norm.bias):
            assert bool((tensor[gone] == 0).all())
    else:
        dead, count = sum(found.dead for found in counted.values()), sum(found.total for found in counted.values())
    assert reg.dead_share() == pytest.approx(dead / count)


class HalfRead(nn.Module):
    """Channels 0 to 2 of the convolution can leave; 3 to 5 are an output of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 6, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner, outer = self.conv(x).chunk(2, dim=1)
        return self.head(inner.relu().mean((2, 3))), outer


def test_channels_in_no_group_are_neither_counted_nor_changed() -> None:
    model = HalfRead()
    before = model.conv.weight.detach().clone()
    reg = Regularizer(model, "l0", "coupled", 1e6, example_inputs=EXAMPLE)
    assert reg.sparsity() == {"conv": LayerSparsity(0, 3)}
    reg.prox_(torch.optim.SGD(model.parameters(), lr=0.1))
    assert reg.sparsity() == {"conv": LayerSparsity(3, 3)}
    assert torch.equal(model.conv.weight[3:], before[3:])
    assert bool((model.conv.weight[:3] == 0).all())


def test_without_strength_training_is_untouched(net: Net) -> None:
    torch.manual_seed(0)
    other = Net()
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2) for model in (net, other)]
    train(net, regularizer(net, "group-lasso", "coupled", 0.0), optimizers[0], 3)
    train(other, regularizer(other, "l0", "filter", 0.0), optimizers[1], 3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_frozen_dead_groups_stay_dead_and_the_rest_is_free_of_penalty(net: Net) -> None:
    optimizer, reg = OPTIMIZERS["adam"](net), regularizer(net, "l1", "coupled", 0.0)
    train(net, reg, optimizer, 2)
    calibrate(reg, optimizer, net, 0.3)
    dead, share = reg.groups.dead(), reg.dead_share()
    assert 0 < share < 1

    reg.freeze_()
    reg.strength = 1e3  # would kill everything at once
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(torch.randn(16, 1, 8, 8)), torch.arange(16) % 3).backward()
    optimizer.step()
    stepped = [p.detach().clone() for p in net.parameters()]
    reg.prox_(optimizer)
    assert torch.equal(reg.groups.dead(), dead)
    keep = {id(p.parameter): p.spread(torch.cat((~dead, torch.tensor([True])))) for p in reg.groups.slices}
    for p, after_step, at_start in zip(net.parameters(), stepped, before, strict=True):
        assert torch.equal(p, after_step * keep.get(id(p), 1))
        assert not torch.equal(p, at_start)
    train(net, reg, optimizer, 3)
    assert torch.equal(reg.groups.dead(), dead)


def test_frozen_single_weights_stay_zero(net: Net) -> None:
    optimizer, reg = OPTIMIZERS["rmsprop"](net), regularizer(net, "l0", "weight", 0.0)
    train(net, reg, optimizer, 2)
    calibrate(reg, optimizer, net, 0.3)
    zero = [p == 0 for _, p in reg.groups.weights]
    reg.freeze_()
    train(net, reg, optimizer, 3)
    for was, (_, p) in zip(zero, reg.groups.weights, strict=True):
        assert bool((p[was] == 0).all())
        assert int((p == 0).sum()) == int(was.sum())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_after_freezing_no_subgradient_is_added(net: Net, granularity: str) -> None:
    reg = regularizer(net, "l1", granularity, 0.5)
    reg.freeze_()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    reg.add_subgradient_()
    assert all(float(p.grad.abs().sum()) == 0 for p in net.parameters() if p.grad is not None)


def test_a_parameter_that_is_not_trained_is_refused(net: Net) -> None:
    reg = regularizer(net, "l1", "coupled", 0.5)
    optimizer = torch.optim.SGD([p for name, p in net.named_parameters() if name != "inner_norm.bias"], lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ConfigError, match=r"acts on inner_norm\.bias, which the optimiser does not train"):
        reg.prox_(optimizer)
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_weights_that_are_frozen_out_of_training_stay_as_they_are(
    net: Net, optimizer_name: str, granularity: str
) -> None:
    frozen = [*net.inner.parameters(), *net.inner_norm.parameters()]
    before = [p.requires_grad_(False).clone() for p in frozen]
    optimizer, reg = OPTIMIZERS[optimizer_name](net), regularizer(net, "group-lasso", granularity, 10.0)
    train(net, reg, optimizer, 2)
    assert all(torch.equal(p, was) for p, was in zip(frozen, before, strict=True))
    assert reg.dead_share() > 0


# --- value and subgradient ------------------------------------------------------------------------------------------


def plain_value(reg: Regularizer, parts_of: Parts, of: Callable[[GroupSlice], Tensor]) -> Tensor:
    vectors = [torch.cat(pieces) for pieces in parts_of(reg.groups, of)]
    factors = [len(vector) ** 0.5 if reg.group_weights == "sqrt-size" else 1.0 for vector in vectors]
    penalty = reg.penalty
    if isinstance(penalty, LayerwisePenalty):
        first = [
            next(part.name for part in reg.groups.slices if part.layer and g in part.groups.tolist())
            for g in range(reg.groups.count)
        ]
        layers = [[g for g, name in enumerate(first) if name == layer] for layer in dict.fromkeys(first)]
        return torch.stack(
            [
                sum(factors[g] for g in layer)
                / len(layer)
                * penalty.value(torch.stack([vectors[g].norm() for g in layer]))
                for layer in layers
            ]
        ).sum()
    outer = [factor * penalty.on_norms.value(vector.norm()) for factor, vector in zip(factors, vectors, strict=True)]
    inner = [penalty.on_weights.value(vector.abs()).sum() for vector in vectors] if penalty.on_weights else []
    return torch.stack([*outer, *inner]).sum()


# A penalty's own group weights, where none are given, are one of the two.
@pytest.mark.parametrize("group_weights", ["none", "sqrt-size", pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("granularity", ["filter", "coupled"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_value_is_the_sum_over_groups(
    net: Net, parts_of: Parts, penalty: str, granularity: str, group_weights: str | None
) -> None:
    reg = regularizer(net, penalty, granularity, 0.3, group_weights)
    net.inner.weight.data[2] = 0.0
    expected = plain_value(reg, parts_of, lambda part: part.parameter.detach())
    assert reg.value() == pytest.approx(float(expected), rel=SUM_TOLERANCE)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_value_on_single_weights(net: Net, penalty: str) -> None:
    reg = regularizer(net, penalty, "weight", 0.3)
    flat = torch.cat([getattr(net, layer).weight.detach().reshape(-1) for layer in LAYERS["weight"]])
    if isinstance(reg.penalty, LayerwisePenalty):
        layers = [getattr(net, layer).weight.detach().abs().flatten() for layer in LAYERS["weight"]]
        expected = sum(float(reg.penalty.value(layer)) for layer in layers)
    else:
        expected = sum(float(reg.penalty.value(w.abs().reshape(1)).sum()) for w in flat)
    assert reg.value() == pytest.approx(expected, rel=SUM_TOLERANCE)


@pytest.mark.parametrize("penalty", PULLING)
@pytest.mark.parametrize("granularity", ["filter", "coupled"])
def test_subgradient_is_what_autograd_finds(net: Net, parts_of: Parts, penalty: str, granularity: str) -> None:
    reg = regularizer(net, penalty, granularity, 0.3)
    parameters = [p for _, p in reg.groups.parameters]
    expected = torch.autograd.grad(plain_value(reg, parts_of, lambda part: part.parameter), parameters)
    start = [torch.randn_like(p) for p in parameters]
    for p, gradient in zip(parameters, start, strict=True):
        p.grad = gradient.clone()
    reg.add_subgradient_()
    for p, gradient, pull in zip(parameters, start, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient + pull, rtol=SUM_TOLERANCE, atol=1e-6)


@pytest.mark.parametrize("penalty", PULLING)
def test_subgradient_on_single_weights_is_what_autograd_finds(net: Net, penalty: str) -> None:
    reg = regularizer(net, penalty, "weight", 0.3)
    weights = [p for _, p in reg.groups.weights]
    layerwise = isinstance(reg.penalty, LayerwisePenalty | GroupwisePenalty)
    value = torch.zeros(())
    for w in weights:
        z = w.abs().flatten()
        value = value + (
            sum(part.value(z).sum() for part in reg.penalty.parts) if layerwise else reg.penalty.value(z).sum()
        )
    expected = torch.autograd.grad(value, weights)
    for w in weights:
        w.grad = torch.zeros_like(w)
    reg.add_subgradient_()
    for w, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(w.grad, gradient, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)


def test_subgradient_on_single_weights(net: Net) -> None:
    reg = regularizer(net, "l1", "weight", 0.3)
    net.stem.weight.data[0] = 0.0
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    reg.add_subgradient_()
    for name, p in net.named_parameters():
        layer, _, kind = name.partition(".")
        expected = 0.3 * p.sign() if layer in LAYERS["weight"] and kind == "weight" else torch.zeros_like(p)
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected.detach(), rtol=0, atol=0)


def test_subgradient_of_a_zero_group_is_zero_and_of_a_parameter_without_gradient_nothing(net: Net) -> None:
    reg = regularizer(net, "l1", "filter", 0.3)
    net.inner.weight.data.zero_()
    net.inner.weight.grad = torch.zeros_like(net.inner.weight)
    reg.add_subgradient_()
    assert torch.equal(net.inner.weight.grad, torch.zeros_like(net.inner.weight))
    assert net.stem.weight.grad is None


# --- construction ---------------------------------------------------------------------------------------------------


def test_the_strength_can_be_changed_and_is_checked(net: Net) -> None:
    reg = regularizer(net, "l1", "coupled", 0.5)
    value = reg.value()
    reg.strength = 0.25
    assert reg.strength == 0.25
    assert reg.value() == pytest.approx(value / 2)
    with pytest.raises(ConfigError, match="got -1"):
        reg.strength = -1.0
    assert reg.strength == 0.25


def test_a_penalty_can_be_given_as_an_object(net: Net) -> None:
    given = L0(0.5)
    reg = Regularizer(net, given, "weight")
    assert reg.penalty is given
    assert Regularizer(net, given, "weight", 0.25).penalty == L0(0.25)
    reg.strength = 0.125
    assert given.strength == 0.5


def test_group_weights_are_the_penaltys_own_unless_given(net: Net) -> None:
    assert {name: regularizer(net, name, "weight", 0.1).group_weights for name in PENALTIES} == {
        name: cls.default_group_weights for name, cls in PENALTIES.items()
    }
    assert regularizer(net, "group-lasso", "weight", 0.1, "none").group_weights == "none"


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_changed_and_every_module_keeps_its_mode(net: Net, training: bool) -> None:
    net.train(training)
    net.inner_norm.train(not training)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    regularizer(net, "l0", "coupled", 0.1)
    assert net.training is training
    assert net.stem_norm.training is training
    assert net.inner_norm.training is not training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("l2", "weight", 0.1), {}, f"unknown penalty 'l2'; known: {', '.join(PENALTIES)}"),
        (("l1", "kernels", 0.1), {}, f"unknown granularity 'kernels'; known: {', '.join(GRANULARITIES)}"),
        (
            ("l1", "weight", 0.1),
            {"group_weights": "square"},
            f"unknown group_weights 'square'; known: {', '.join(GROUP_WEIGHTS)}",
        ),
        (("l1", "weight", -0.1), {}, "penalty strength: got -0.1, expected a finite number >= 0"),
        ((L1(0.1), "weight", -0.1), {}, "penalty strength: got -0.1"),
        (("l1", "weight"), {}, "the penalty 'l1' needs a strength"),
        (("l1", "coupled", 0.1), {}, "pass example_inputs"),
        (("l1", "kernel", 0.1), {"group_weights": "macs"}, "got granularity 'kernel'; use filter, channel, bn-scale"),
    ],
)
def test_what_cannot_be_built_is_refused(
    net: Net, arguments: tuple[str, str, float], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Regularizer(net, *arguments, **options)


def test_it_is_the_packages_own_name(net: Net) -> None:
    assert compress.Regularizer is Regularizer


def test_a_penalty_without_derivative_refuses_to_act_as_a_subgradient(net: Net) -> None:
    reg = Regularizer(net, "l0", "weight", 1.0)
    with pytest.raises(ConfigError, match="prox_"):
        reg.add_subgradient_()
