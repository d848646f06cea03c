"""A cut in the middle of training: what the optimiser and the penalty know goes along, in its own place."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from compress.optim import Regularizer
from compress.optim.slicing import Piece, UnreadSlice, slice_optimizer_, sliced, unread, whole, without_unread

ROWS, COLUMNS = [0, 2, 3], [1, 2]
"""What stays of a layer's 4 outputs and of its 3 inputs."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "sgd with momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01),
    "rmsprop, centred": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
    "amsgrad": lambda groups: torch.optim.AdamW(groups, lr=0.01, amsgrad=True),
}

STATE = {
    "sgd": set(),
    "sgd with momentum": {"momentum_buffer"},
    "rmsprop": {"square_avg"},
    "rmsprop, centred": {"square_avg", "momentum_buffer", "grad_avg"},
    "adam": {"exp_avg", "exp_avg_sq"},
    "amsgrad": {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
}
"""What each keeps in a parameter's shape."""


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4)


def pieces_of(weight: nn.Parameter, bias: nn.Parameter) -> dict[nn.Parameter, Piece]:
    numbers = torch.arange(weight.numel()).reshape(weight.shape)
    return {
        weight: Piece.taken(weight, numbers[ROWS][:, COLUMNS]),
        bias: Piece.taken(bias, torch.tensor(ROWS)),
    }


def step(optimizer: torch.optim.Optimizer, gradients: list[torch.Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_those_of_the_uncut_optimiser(name: str):
    whole_layer, small = layer(), layer()
    optimizers = [
        OPTIMIZERS[name]([{"params": [one.weight], "weight_decay": 0.1}, {"params": [one.bias], "lr": 0.5}])
        for one in (whole_layer, small)
    ]
    gradients = [[torch.randn(4, 3), torch.randn(4)] for _ in range(4)]
    for first in gradients[:2]:
        for optimizer in optimizers:
            step(optimizer, first)
    cut = pieces_of(small.weight, small.bias)
    slice_optimizer_(optimizers[1], whole(cut))
    weight, bias = (cut[old].parameter for old in (small.weight, small.bias))
    assert [group["params"] for group in optimizers[1].param_groups] == [[weight], [bias]]
    state = optimizers[1].state
    assert set(state) <= {weight, bias}
    assert {key for key, value in state[weight].items() if isinstance(value, torch.Tensor) and value.ndim} == STATE[
        name
    ]
    for later in gradients[2:]:
        step(optimizers[0], later)
        step(optimizers[1], [later[0][ROWS][:, COLUMNS], later[1][ROWS]])
    assert torch.equal(weight, whole_layer.weight[ROWS][:, COLUMNS])
    assert torch.equal(bias, whole_layer.bias[ROWS])


def test_pieces_of_one_parameter_count_their_steps_apart():
    one = layer()
    optimizer = OPTIMIZERS["adam"]([one.weight])
    step(optimizer, [torch.randn(4, 3)])
    halves = tuple(Piece.taken(one.weight, torch.arange(12).reshape(2, 6)[half]) for half in (0, 1))
    slice_optimizer_(optimizer, {one.weight: halves})
    step(optimizer, [torch.randn(6), torch.randn(6)])
    assert [float(optimizer.state[piece.parameter]["step"]) for piece in halves] == [2.0, 2.0]


def test_what_was_frozen_out_of_training_stays_so():
    one = layer()
    one.weight.requires_grad_(False)
    assert not Piece.taken(one.weight, torch.arange(3)).parameter.requires_grad


class Chain(nn.Module):
    """Two layers whose channels are groups: 4 of ``first``, 5 of ``second``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.second(self.first(x).relu()).relu())
        return logits


def chain() -> Chain:
    torch.manual_seed(0)
    return Chain()


def cut_chain(net: Chain) -> dict[nn.Parameter, Piece]:
    """Channel 1 of ``first`` leaves: a row and a bias there, a column of ``second``."""
    rows = torch.tensor([0, 2, 3])
    return {
        net.first.weight: Piece.taken(net.first.weight, torch.arange(12).reshape(4, 3)[rows]),
        net.first.bias: Piece.taken(net.first.bias, rows),
        net.second.weight: Piece.taken(net.second.weight, torch.arange(20).reshape(5, 4)[:, rows]),
    }


def penalty(
    net: Chain, name: str = "group-lasso", granularity: str = "coupled", weights: str | None = None
) -> Regularizer:
    return Regularizer(net, name, granularity, 0.3, example_inputs=(torch.zeros(1, 3),), group_weights=weights)


@pytest.mark.parametrize("weights", ["none", "sqrt-size", "macs"])
@pytest.mark.parametrize("granularity", ["coupled", "filter"])
def test_the_other_groups_keep_their_penalty_to_the_last_digit_but_rounding(granularity: str, weights: str):
    net = chain()
    with torch.no_grad():
        net.first.weight[1], net.first.bias[1] = 0.0, 0.0
    before = penalty(net, granularity=granularity, weights=weights)
    after, _ = sliced(before, cut_chain(net))
    assert (before.groups.count, after.groups.count) == (9, 8)
    assert after.value() == pytest.approx(before.value(), rel=1e-6)
    assert torch.allclose(after.groups.squared_norms(), before.groups.squared_norms()[[0, 2, 3, 4, 5, 6, 7, 8]])
    assert {name: count.total for name, count in after.sparsity().items()} == {"first": 3, "second": 5}


class Fork(nn.Module):
    """Of the 4 channels of ``first`` one layer reads all, another one half: two of them cost more than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.some, self.every = nn.Linear(3, 4), nn.Linear(2, 6), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        logits: torch.Tensor = self.some(h[:, :2]) + self.every(h)
        return logits


@pytest.mark.parametrize("name", ["hoyer", "l1-over-l2"])
def test_a_layerwise_penalty_weighs_in_a_layer_what_it_did(name: str):
    torch.manual_seed(0)
    net = Fork().double()
    with torch.no_grad():
        net.first.weight[1], net.first.bias[1] = 0.0, 0.0
    before = Regularizer(net, name, "coupled", 0.3, example_inputs=(torch.zeros(1, 3).double(),), group_weights="macs")
    assert before._weights().unique().numel() == 2
    rows = torch.tensor([0, 2, 3])
    cut = {
        net.first.weight: Piece.taken(net.first.weight, torch.arange(12).reshape(4, 3)[rows]),
        net.first.bias: Piece.taken(net.first.bias, rows),
        net.some.weight: Piece.taken(net.some.weight, torch.arange(12).reshape(6, 2)[:, :1]),
        net.every.weight: Piece.taken(net.every.weight, torch.arange(24).reshape(6, 4)[:, rows]),
    }
    after, _ = sliced(before, cut)
    again, _ = sliced(after, {})
    assert after.groups.count == before.groups.count - 1
    assert after.value() == pytest.approx(before.value(), rel=1e-12)
    assert again.value() == pytest.approx(before.value(), rel=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("granularity", ["coupled", "filter", "channel"])
def test_the_proximal_steps_after_a_cut_are_those_without(granularity: str, optimizer: str):
    """Also where one was taken before: what it keeps for the next belongs to groups that are gone."""
    nets = chain(), chain()
    regs = [penalty(net, granularity=granularity, weights="none") for net in nets]
    optimizers = [OPTIMIZERS[optimizer](net.parameters()) for net in nets]

    def both() -> None:
        for reg, own in zip(regs, optimizers, strict=True):
            step(own, [torch.ones_like(p) for group in own.param_groups for p in group["params"]])
            before = reg.value()
            reg.prox_(own)
            assert reg.value() < before

    both()
    with torch.no_grad():
        for net in nets:
            net.first.weight[1], net.first.bias[1], net.second.weight[:, 1] = 0.0, 0.0, 0.0
    cut = cut_chain(nets[1])
    regs[1], pieces = sliced(regs[1], cut)
    slice_optimizer_(optimizers[1], pieces)
    both()
    for old, piece in cut.items():
        name = next(name for name, p in nets[1].named_parameters() if p is old)
        expected = nets[0].get_parameter(name).detach().flatten()[piece.positions]
        torch.testing.assert_close(piece.parameter.detach(), expected, rtol=1e-6, atol=0)


def test_what_nobody_reads_any_more_stays_with_its_groups():
    net = chain()
    after, pieces = sliced(penalty(net), cut_chain(net))
    [part] = [part for part in after.groups.slices if isinstance(part, UnreadSlice)]
    assert part.name == "second.weight"
    assert torch.equal(part.parameter, net.second.weight[:, 1])
    assert part.groups.tolist() == [3, 4, 5, 6, 7]
    assert [piece.parameter.shape for piece in pieces[net.second.weight]] == [(5, 3), (5,)]

    # channel 2 of ``second`` leaves too: its share of the unread weights goes, the others' stays
    rows = torch.tensor([0, 1, 3, 4])
    second = pieces[net.second.weight][0].parameter
    then = {
        second: Piece.taken(second, torch.arange(15).reshape(5, 3)[rows]),
        net.second.bias: Piece.taken(net.second.bias, rows),
        net.last.weight: Piece.taken(net.last.weight, torch.arange(10).reshape(2, 5)[:, rows]),
    }
    [weights] = unread(after)
    last, pieces = sliced(after, then)
    assert torch.equal(pieces[weights][0].parameter, net.second.weight[rows, 1])
    assert torch.equal(torch.cat(unread(last)), net.second.weight[rows, 1])
    assert last.groups.count == 7


def test_unread_weights_are_forgotten_where_norms_no_longer_matter():
    net = chain()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    after, pieces = sliced(penalty(net), cut_chain(net))
    slice_optimizer_(optimizer, pieces)
    assert len(optimizer.param_groups[0]["params"]) == 7
    last, forgotten = without_unread(after)
    slice_optimizer_(optimizer, forgotten)
    assert len(optimizer.param_groups[0]["params"]) == 6
    assert unread(last) == []
    assert last.groups.count == after.groups.count


@pytest.mark.parametrize("granularity", ["coupled", "weight"])
def test_frozen_groups_stay_frozen_and_leave_nothing_unread(granularity: str):
    net = chain()
    with torch.no_grad():
        net.second.weight[2], net.second.bias[2] = 0.0, 0.0
    before = penalty(net, "l1", granularity)
    before.freeze_()
    cut = cut_chain(net)
    after, _ = sliced(before, cut)
    assert unread(after) == []
    smaller = cut[net.second.weight].parameter
    assert smaller.shape == (5, 3)
    with torch.no_grad():
        smaller.fill_(1.0)
    after.prox_(torch.optim.SGD(net.parameters(), lr=0.1))
    assert smaller.sum(1).tolist() == [3.0, 3.0, 0.0, 3.0, 3.0]


def test_single_weights_are_counted_anew():
    net = chain()
    before = penalty(net, "l1", "weight")
    expected = copy.deepcopy(net)
    after, pieces = sliced(before, cut_chain(net))
    assert (before.groups.count, after.groups.count) == (42, 34)
    assert [len(new) for new in pieces.values()] == [1, 1, 1]
    assert torch.equal(dict(after.groups.weights)["second.weight"], expected.second.weight[:, [0, 2, 3]])


class Convolutions(nn.Module):
    """2 channels of ``first`` are read by 3 filters of ``second``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize(("granularity", "before", "after"), [("kernel", 2 + 6, 1 + 3), ("channel", 2 + 3, 1 + 3)])
def test_kernels_and_input_channels_leave_with_the_channel_they_read(granularity: str, before: int, after: int):
    torch.manual_seed(0)
    net = Convolutions()
    with torch.no_grad():
        net.second.weight[:, 0] = 0.0
        net.first.weight[0] = 0.0
    reg = Regularizer(net, "l1", granularity, 0.3, example_inputs=(torch.zeros(1, 1, 8, 8),))
    assert reg.groups.count == before
    stays = torch.tensor([1])
    cut = {
        net.first.weight: Piece.taken(net.first.weight, torch.arange(18).reshape(2, 1, 3, 3)[stays]),
        net.first.bias: Piece.taken(net.first.bias, stays),
        net.second.weight: Piece.taken(net.second.weight, torch.arange(54).reshape(3, 2, 3, 3)[:, stays]),
    }
    value = reg.value()
    smaller, _ = sliced(reg, cut)
    assert smaller.groups.count == after
    assert unread(smaller) == []
    assert smaller.value() == pytest.approx(value, rel=1e-6)
