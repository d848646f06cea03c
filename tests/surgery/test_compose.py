"""Two plans as one: the composed plan rebuilds, from the original class, the very network that was cut twice."""

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compress
from compress.errors import CheckpointError
from compress.models import build
from compress.models.resnet import ResNet
from compress.surgery import Plan, compact, save_weights
from compress.surgery.compose import compose, restore_
from compress.surgery.kept import Kept

NETWORKS = {
    "lenet5": (lambda: build("lenet5", num_classes=10, in_channels=1, image_size=28), (1, 28)),
    "vgg11": (lambda: build("vgg11", num_classes=10, in_channels=3, image_size=32), (3, 32)),
    "resnet8": (lambda: ResNet(1, num_classes=10, in_channels=3), (3, 32)),
    "resnet20": (lambda: build("resnet20", num_classes=10, in_channels=3, image_size=32), (3, 32)),
}
"""Name -> (builder, channels and size of its images)."""


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.Conv2d(6, 5, 3, bias=False)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        return self.head(y.mean((2, 3)))


@pytest.fixture
def cut_twice(randomise_, kill_):
    """(first result, second result) of a network whose first cut gives ``b`` a bias, and whose second cuts it."""
    model = randomise_(Small()).float()
    kill_(model.a, [1, 4], 0.5)
    first = compact(model, (torch.randn(1, 3, 9, 9),))
    assert first.plan.new_biases == ("b.bias",)
    again = copy.deepcopy(first.model)
    kill_(again.b, [0, 3], 0.7)
    kill_(again.a, [2])
    second = compact(again, (torch.randn(1, 3, 9, 9),))
    return first, second


def rebuilt(plan, model, base, tmp_path):
    """What plan and weights, through their files, make of the original class."""
    plan.save(tmp_path / "plan.json")
    save_weights(model, tmp_path / "weights.safetensors")
    return compress.load(tmp_path / "plan.json", tmp_path / "weights.safetensors", base=base)


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        *itertools.product(("lenet5", "resnet8"), (0.0, 0.2)),
        ("vgg11", 0.2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("vgg11", 0.0), ("resnet20", 0.0), ("resnet20", 0.2))
        ),
    ],
)
def test_a_network_cut_twice_is_rebuilt_bit_for_bit(name, shift, randomise_, kill_free_, tmp_path):
    base, (channels, size) = NETWORKS[name]
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size)
    model = randomise_(base()).float()
    kill_free_(model, x, share=0.3, shift=shift)
    first = compact(model, (x,))
    kill_free_(first.model, x, share=0.4, shift=shift, seed=1)
    second = compact(first.model, (x,))
    assert second.report.params_after < first.report.params_after < first.report.params_before

    twice = rebuilt(compose(first.plan, second.plan), second.model, base, tmp_path)
    assert type(twice) is type(model)
    expected = second.model.state_dict()
    assert twice.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in twice.state_dict().items())
    with torch.no_grad():
        assert torch.equal(twice(x), second.model.eval()(x))


@pytest.mark.parametrize("name", ["resnet8", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_zeros_removed_in_two_steps_are_those_removed_in_one(name, randomise_, kill_free_):
    base, (channels, size) = NETWORKS[name]
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size)
    model = randomise_(base()).float()
    kill_free_(model, x, share=0.3)
    first = compact(model, (x,))
    kill_free_(model, x, share=0.3, seed=1)  # now about half: those from before and new ones
    at_once = compact(model, (x,))

    between = copy.deepcopy(first.model)
    state = {name: model.state_dict()[name] for name in between.state_dict()}
    between.load_state_dict(
        {name: first.plan.parameters[name].cut(t) if name in first.plan.parameters else t for name, t in state.items()}
    )
    second = compact(between, (x,))
    composed = compose(first.plan, second.plan)
    assert composed.parameters == at_once.plan.parameters
    assert composed.hash_after == at_once.plan.hash_after


def test_biases_and_folds_of_both_are_listed_as_the_original_counts(cut_twice, tmp_path):
    first, second = cut_twice
    composed = compose(first.plan, second.plan)
    assert composed.new_biases == ("b.bias",)
    assert composed.parameters["a.weight"].indices == {0: [0, 2, 5]}  # 3 is index 2 of what the first left: 0, 2, 3, 5
    assert composed.parameters["b.weight"] == Kept((5, 6, 3, 3), {0: [1, 2, 4], 1: [0, 2, 5]})
    assert "b.bias" not in composed.parameters
    assert composed.folds == (
        {"weight": "b.weight", "into": "b.bias", "inputs": [1, 4]},
        {"weight": "head.weight", "into": "head.bias", "inputs": [0, 3]},
    )
    twice = rebuilt(composed, second.model, Small, tmp_path)
    assert twice.b.bias.shape == (3,)
    assert all(torch.equal(t, second.model.state_dict()[name]) for name, t in twice.state_dict().items())


def test_inputs_and_carriers_are_counted_as_the_original_does():
    first = Plan("Net", {"w": Kept((2, 6, 3, 3), {1: [0, 2, 3, 5]})})
    second = Plan(
        "Net",
        {"w": Kept((2, 4, 3, 3), {1: [0, 2]})},
        folds=({"weight": "w", "into": "w", "inputs": [1, 3], "carrier": 2},),
    )
    composed = compose(first, second)
    assert composed.parameters == {"w": Kept((2, 6, 3, 3), {1: [0, 3]})}
    assert composed.folds == ({"weight": "w", "into": "w", "inputs": [2, 5], "carrier": 3},)


def test_hashes_say_which_weights_there_are(cut_twice):
    first, second = cut_twice
    composed = compose(first.plan, second.plan)
    assert composed.hash_before == ""  # channels were zeroed in between
    assert composed.hash_after == second.plan.hash_after
    unchanged = dataclasses.replace(second.plan, hash_before=first.plan.hash_after)
    assert compose(first.plan, unchanged).hash_before == first.plan.hash_before


def test_a_plan_that_cuts_nothing_leaves_the_other_as_it_is(cut_twice):
    first, second = cut_twice
    nothing = Plan("Small", {}, hash_before="a", hash_after="b")
    assert compose(nothing, second.plan) == dataclasses.replace(second.plan, architecture="Small")
    assert compose(first.plan, nothing) == dataclasses.replace(first.plan, hash_before="", hash_after="b")


def test_three_plans_compose_in_either_order(cut_twice, kill_):
    first, second = cut_twice
    third_model = copy.deepcopy(second.model)
    kill_(third_model.b, [1], 0.4)
    third = compact(third_model, (torch.randn(1, 3, 9, 9),))
    left = compose(compose(first.plan, second.plan), third.plan)
    right = compose(first.plan, compose(second.plan, third.plan))
    assert left == right


@dataclasses.dataclass(frozen=True)
class LaterPlan(Plan):
    mergers: tuple[str, ...] = ()


def test_what_is_not_known_is_refused_in_the_first_and_taken_from_the_second(cut_twice):
    first, second = cut_twice
    later = LaterPlan(**vars(first.plan) | {"mergers": ("bn1",)})
    with pytest.raises(CheckpointError, match=r"cannot be followed by another: it holds mergers"):
        compose(later, second.plan)
    selecting = dataclasses.replace(first.plan, selections={"bn1": [0, 1]})
    assert compose(selecting, second.plan).selections == {"bn1": [0, 1]}
    with pytest.raises(CheckpointError, match="both select channels for bn1"):
        compose(selecting, dataclasses.replace(second.plan, selections={"bn1": [0]}))
    with pytest.raises(CheckpointError, match=r"it holds constant_layers; compact the network in its original shapes"):
        compose(dataclasses.replace(first.plan, constant_layers=("b",)), second.plan)
    last = dataclasses.replace(second.plan, selections={"bn1": [0, 1]}, constant_layers=("b",))
    composed = compose(first.plan, last)
    assert (composed.selections, composed.constant_layers) == ({"bn1": [0, 1]}, ("b",))
    nothing = Plan("Small", {}, hash_after="h")
    assert compose(nothing, later).mergers == ("bn1",)
    assert compose(later, nothing).mergers == ("bn1",)


def test_groups_are_composed_group_by_group():
    first = Plan("Net", {"w": Kept((8, 3, 1, 1), {0: [0, 1, 2, 4, 6, 7], 1: [0, 1, 4, 5]}, groups=2)})
    second = Plan("Net", {"w": Kept((6, 2, 1, 1), {0: [1, 2, 3, 5], 1: [1, 3]}, groups=2)})
    composed = compose(first, second).parameters["w"]
    assert composed == Kept((8, 3, 1, 1), {0: [1, 2, 4, 7], 1: [1, 5]}, groups=2)
    weight = torch.randn(8, 3, 1, 1)
    assert torch.equal(composed.cut(weight), second.parameters["w"].cut(first.parameters["w"].cut(weight)))
    with pytest.raises(CheckpointError, match=r"w has shape \(6, 2, 1, 1\) \(groups: 2\)"):
        compose(first, Plan("Net", {"w": Kept((6, 2, 1, 1), {0: [1, 2]})}))


def test_plans_that_do_not_follow_each_other_are_refused(cut_twice):
    first, second = cut_twice
    with pytest.raises(CheckpointError, match=r"both give b\.bias|a\.weight has shape \(4, 3, 3, 3\) .*\(6, 3"):
        compose(first.plan, first.plan)
    wrong = dict(second.plan.parameters, **{"b.bias": Kept((5,), {0: [0, 1, 2]})})
    with pytest.raises(CheckpointError, match=r"gives b\.bias to the network, the second cuts it otherwise"):
        compose(first.plan, dataclasses.replace(second.plan, parameters=wrong))
    again = dataclasses.replace(first.plan, parameters={"head.weight": Kept((2, 5), {1: [0]})})
    with pytest.raises(CheckpointError, match=r"both give b\.bias to the network"):
        compose(first.plan, again)


class Streams(nn.Module):
    """A BatchNorm that can select channels, a grouped convolution, a layer without bias that can become constant."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.split = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.aside = nn.Conv2d(8, 6, 3, bias=False)
        self.head = nn.Linear(14, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.split(F.relu(self.norm(x)))
        return self.head(torch.cat((y, F.relu(self.aside(x))), 1).mean((2, 3)))


def constant_(kill_, model):
    kill_(model.stem, [0, 2, 5], 0.4)
    model.aside.weight.data[:] = 0


def selecting_(_, model):
    for i in (0, 1, 4, 5):
        model.norm.weight.data[i] = 0
        model.norm.bias.data[i] = 0.3 * (i + 1)


DAMAGES = {
    "folded": lambda kill_, model: kill_(model.stem, [0, 2, 5], 0.4),
    "grouped": lambda kill_, model: kill_(model.split, [1, 6]),
    "constant layer": constant_,
    "selecting": selecting_,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_trained_compact_weights_go_back_into_the_original_shapes(damage, randomise_, kill_):
    model, x = randomise_(Streams()), torch.randn(2, 3, 9, 9).double()
    DAMAGES[damage](kill_, model)
    result = compact(model, (x[:1],), select="always")
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # as if trained
    base = Streams().double()
    added = restore_(base, result.plan, result.model.state_dict())
    assert type(base) is Streams
    with torch.no_grad():
        difference = (base.eval()(x) - result.model.eval()(x)).abs().max()
    assert difference <= 1e-12
    fresh = Streams().double()
    added.reshape_(fresh)
    fresh.load_state_dict(base.state_dict())  # the same names and shapes

    again = compact(base, (x[:1],), select="always")
    assert again.report.params_after <= sum(p.numel() for p in result.model.parameters())
    plan = compose(added, again.plan)
    assert plan.hash_before == again.plan.hash_before
    cut_anew = plan.rebuild(Streams().double())
    cut_anew.load_state_dict(again.model.state_dict())
    with torch.no_grad():
        assert (cut_anew.eval()(x) - base(x)).abs().max() <= 1e-12


def test_the_biases_that_come_back_are_those_that_constants_made(randomise_, kill_):
    x = torch.randn(1, 3, 9, 9).double()
    expected = {
        "folded": {"aside.bias", "split.bias"},
        "grouped": set(),
        "constant layer": {"aside.bias", "split.bias"},
        "selecting": {"split.bias"},
    }
    for damage, names in expected.items():
        model = randomise_(Streams())
        DAMAGES[damage](kill_, model)
        result = compact(model, (x,), select="always")
        assert set(restore_(Streams().double(), result.plan, result.model.state_dict()).new_biases) == names


def test_weights_of_another_network_do_not_go_back(randomise_, kill_):
    model = randomise_(Streams())
    DAMAGES["grouped"](kill_, model)
    result = compact(model, (torch.randn(1, 3, 9, 9).double(),))
    with pytest.raises(CheckpointError, match=r"split\.weight has shape \(8, 4, 3, 3\), the plan leaves 216 entries"):
        restore_(Streams(), result.plan, Streams().state_dict())
    state = result.model.state_dict()
    del state["stem.weight"]
    with pytest.raises(CheckpointError, match=r"the compact weights lack stem\.weight"):
        restore_(Streams(), result.plan, state)
