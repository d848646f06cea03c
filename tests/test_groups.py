"""Groups of real networks: who belongs to whom, and that a group that is zero is a channel that is dead."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.graph import channel_graph
from compress.groups import GRANULARITIES, Groups, find_groups
from compress.models import build
from compress.optim import Regularizer
from compress.surgery import compact

IMAGES = {"resnet20": (3, 32), "vgg11": (3, 32), "lenet5": (1, 28)}


@pytest.fixture(scope="module", params=list(IMAGES))
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor]:
    channels, size = IMAGES[request.param]
    torch.manual_seed(0)
    model = build(request.param, num_classes=10, in_channels=channels, image_size=size)
    return request.param, model, torch.randn(1, channels, size, size)


def members(groups: Groups, g: int) -> dict[str, list[int]]:
    """Parameter name -> indices of group ``g``."""
    found = {part.name: (part.groups == g).nonzero().flatten().tolist() for part in groups.slices}
    return {name: indices for name, indices in found.items() if indices}


def group_of(groups: Groups, name: str, index: int) -> int:
    return next(int(part.groups[index]) for part in groups.slices if part.name == name)


def free_channels(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Layer -> its output channels that may leave, by the channel graph."""
    graph = channel_graph(model, (x,))
    free, slices = graph.free(), graph.out_slices()
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return {name: int(free[slices[f"{name}.weight", 0]].sum()) for name in layers}


# --- the networks of this package ------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["filter", "coupled"])
def test_every_index_is_in_one_group_at_most_and_every_group_has_one(
    network: tuple[str, nn.Module, Tensor], granularity: str
) -> None:
    _, model, x = network
    groups = find_groups(model, granularity, (x,))
    assert len({id(part.parameter) for part in groups.slices}) == len(groups.slices)
    assert all(part.groups.shape == (part.parameter.shape[part.dim],) for part in groups.slices)
    used = torch.cat([part.groups for part in groups.slices])
    assert used.unique().tolist() == list(range(groups.count + int((used == groups.count).any())))
    assert bool((groups.sizes() > 0).all())


@pytest.mark.parametrize("granularity", ["filter", "coupled"])
def test_the_classifier_and_the_image_are_in_no_group(network: tuple[str, nn.Module, Tensor], granularity: str) -> None:
    name, model, x = network
    groups = find_groups(model, granularity, (x,))
    last = "fc2" if name == "lenet5" else "classifier"
    assert not [part.name for part in groups.slices if part.name.startswith(last)]
    assert {part.dim for part in groups.slices} == {0}  # never what a layer reads


def test_filter_groups_are_the_free_output_channels(network: tuple[str, nn.Module, Tensor]) -> None:
    _, model, x = network
    groups = find_groups(model, "filter", (x,))
    assert groups.count == sum(free_channels(model, x).values())
    shapes = dict(model.named_parameters())
    for part in groups.slices:
        assert part.name.endswith("weight")
        assert part.layer
        size = shapes[part.name][0].numel()
        assert groups.sizes()[part.groups].tolist() == [size] * len(part.groups)


@pytest.mark.parametrize(
    ("name", "filters", "coupled"),
    [
        ("resnet20", 16 * 7 + 32 * 7 + 64 * 7, 16 + 3 * 16 + 32 + 3 * 32 + 64 + 3 * 64),
        ("vgg11", 64 + 128 + 512 + 2048, 64 + 128 + 512 + 2048),
        ("lenet5", 20 + 50 + 500, 20 + 50 + 500),
    ],
)
def test_numbers_of_groups(name: str, filters: int, coupled: int) -> None:
    channels, size = IMAGES[name]
    model = build(name, num_classes=10, in_channels=channels, image_size=size)
    x = torch.randn(1, channels, size, size)
    assert find_groups(model, "filter", (x,)).count == filters
    assert find_groups(model, "coupled", (x,)).count == coupled
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert find_groups(model, "weight").count == sum(m.weight.numel() for m in layers)


def test_weight_groups_are_the_weights_of_layers_without_biases_and_batch_norms(
    network: tuple[str, nn.Module, Tensor],
) -> None:
    _, model, _ = network
    groups = find_groups(model, "weight")
    assert not groups.slices
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert {name for name, _ in groups.weights} == layers
    assert groups.parameters == list(groups.weights)


def test_a_residual_stream_is_one_group_a_channel() -> None:
    model = build("resnet20", num_classes=10)
    groups = find_groups(model, "coupled", (torch.randn(1, 3, 32, 32),))
    stream = {"conv1.weight": [5], "bn1.weight": [5], "bn1.bias": [5]}
    for block in range(3):
        for parameter in ("conv2.weight", "bn2.weight", "bn2.bias"):
            stream[f"stages.0.{block}.{parameter}"] = [5]
    assert members(groups, group_of(groups, "conv1.weight", 5)) == stream
    inner = {f"stages.1.0.{parameter}": [7] for parameter in ("conv1.weight", "bn1.weight", "bn1.bias")}
    assert members(groups, group_of(groups, "stages.1.0.conv1.weight", 7)) == inner
    second = members(groups, group_of(groups, "stages.1.0.conv2.weight", 9))
    assert {"stages.1.0.shortcut.0.weight", "stages.1.0.shortcut.1.weight", "stages.1.0.shortcut.1.bias"} <= set(second)


def test_a_bias_belongs_to_its_channel() -> None:
    groups = find_groups(
        build("lenet5", num_classes=10, in_channels=1, image_size=28), "coupled", (torch.randn(1, 1, 28, 28),)
    )
    assert members(groups, group_of(groups, "conv2.weight", 3)) == {"conv2.weight": [3], "conv2.bias": [3]}
    assert members(groups, group_of(groups, "fc1.weight", 8)) == {"fc1.weight": [8], "fc1.bias": [8]}


# --- zero means dead -------------------------------------------------------------------------------------------------


def randomise_(model: nn.Module) -> None:
    """Every parameter and statistic at random, as after training."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1 if "var" in name else torch.randn_like(tensor) * 0.2)


def zero_inputs(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Layer -> bool by input channel, whether all that the layer reads there is exactly 0; and the network's output."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = (args[0] == 0).transpose(0, 1).flatten(1).all(1)

        return note

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        out = model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found, out


SOURCES = {
    "resnet20": {
        "stages.0.1.conv1": ("conv1", 1),
        "stages.1.0.shortcut.0": ("conv1", 1),
        "stages.1.0.conv1": ("stages.0.2.conv2", 1),
        "stages.1.0.conv2": ("stages.1.0.conv1", 1),
        "stages.2.0.conv1": ("stages.1.0.shortcut.0", 1),
        "classifier": ("stages.2.2.conv2", 1),
    },
    "vgg11": {"features.4": ("features.0", 1), "features.8": ("features.4", 1), "classifier": ("features.25", 1)},
    "lenet5": {"conv2": ("conv1", 1), "fc1": ("conv2", 16), "fc2": ("fc1", 1)},
}
"""Layer -> the layer whose channels it reads, and how many of its inputs each of them makes."""


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_what_the_proximal_step_zeroes_is_exactly_zero_where_it_is_read(
    network: tuple[str, nn.Module, Tensor], training: bool
) -> None:
    name, model, x = network
    torch.manual_seed(2)
    randomise_(model)
    regularizer = Regularizer(model, "l0", "coupled", 0.0, example_inputs=(x,))
    groups, lr = regularizer.groups, 0.1
    norms = groups.squared_norms().sqrt() / groups.sizes().sqrt()
    groups.scale_(torch.where(norms < norms.median(), 1e-3, 1.0))
    regularizer.strength = float((0.01 * groups.sizes().sqrt().max()) ** 2 / (2 * lr))
    regularizer.prox_(torch.optim.SGD(model.parameters(), lr=lr))
    assert 0.3 < regularizer.dead_share() < 0.999

    was_training = model.training
    model.train(training)
    images = torch.randn(8, *x.shape[1:])
    zeros, before = zero_inputs(model, images)
    sparsity = regularizer.sparsity()
    for layer, (source, inputs_each) in SOURCES[name].items():
        dead = dict(model.named_modules())[source].weight.flatten(1).abs().sum(1) == 0
        assert int(dead.sum()) == sparsity[source].dead
        assert bool(zeros[layer][dead.repeat_interleave(inputs_each)].all()), layer

    for layer, zero in zeros.items():  # what reads a dead channel may do with it what it likes
        weight = dict(model.named_modules())[layer].weight
        weight[:, zero] = torch.randn_like(weight[:, zero])
    assert torch.equal(model(images), before)
    model.train(was_training)


# --- small networks: depthwise, concatenation, sharing ---------------------------------------------------------------


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_depthwise_and_residual() -> None:
    model = InvertedResidual()
    x = torch.randn(1, 3, 8, 8)
    groups = find_groups(model, "coupled", (x,))
    assert groups.count == 8 + 4
    hidden = {f"{block}.{p}": [3] for block in ("expand", "depthwise") for p in ("0.weight", "1.weight", "1.bias")}
    assert members(groups, group_of(groups, "depthwise.0.weight", 3)) == hidden
    stream = {
        name: [2] for name in ("stem.weight", "stem.bias", "project.0.weight", "project.1.weight", "project.1.bias")
    }
    assert members(groups, group_of(groups, "stem.weight", 2)) == stream
    assert find_groups(model, "filter", (x,)).count == 4 + 8 + 8 + 4


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat((self.a(x), self.b(x)), dim=1)).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_concatenation() -> None:
    groups = find_groups(Concatenation(), "coupled", (torch.randn(1, 3, 8, 8),))
    assert groups.count == 8
    expected = {"b.weight": [1], "b.bias": [1], "norm.weight": [4], "norm.bias": [4]}
    assert members(groups, group_of(groups, "b.weight", 1)) == expected


class Shared(nn.Module):
    """One convolution twice in a row, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x)).relu()).relu()
        out: Tensor = self.head((self.first(x).relu() * self.second(2 * x).relu()).mean((2, 3)))
        return out


def test_shared_parameters_are_in_one_group_once() -> None:
    model, x = Shared(), torch.randn(1, 3, 8, 8)
    coupled, filters, weights = (
        find_groups(model, granularity, (x,)) for granularity in ("coupled", "filter", "weight")
    )
    assert coupled.count == 4 + 6
    stream = {"stem.weight": [1], "stem.bias": [1], "twice.weight": [1], "twice.bias": [1]}
    assert members(coupled, group_of(coupled, "stem.weight", 1)) == stream
    # the two uses of one weight with two biases: 4 + 1 + 1 numbers, the weights counted once
    assert coupled.sizes()[group_of(coupled, "first.bias", 0)] == 6
    assert filters.count == 4 + 4 + 6
    assert weights.count == 12 + 4 * 4 * 9 + 4 * 6 + 6 * 2
    for groups in (coupled, filters, weights):
        assert len({id(p) for _, p in groups.parameters}) == len(groups.parameters)


def test_a_weight_that_a_parametrization_computes_is_in_no_weight_group() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2)))
    assert [name for name, _ in find_groups(model, "weight").weights] == ["0.weight"]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_granularity_names_the_known() -> None:
    with pytest.raises(ConfigError, match=f"unknown granularity 'kernels'; known: {', '.join(GRANULARITIES)}"):
        find_groups(nn.Linear(2, 2), "kernels")


@pytest.mark.parametrize("granularity", ["filter", "channel", "bn-scale", "coupled"])
def test_channels_need_example_inputs(granularity: str) -> None:
    with pytest.raises(ConfigError, match=r"pass example_inputs=\(x,\)"):
        find_groups(nn.Linear(2, 2), granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_model_without_a_group_is_refused(granularity: str) -> None:
    with pytest.raises(ConfigError, match=f"ReLU has no {granularity} group"):
        find_groups(nn.ReLU(), granularity, (torch.randn(1, 2),))


@pytest.mark.parametrize("granularity", ["filter", "channel", "bn-scale", "coupled"])
def test_a_single_layer_has_no_channel_that_may_leave(granularity: str) -> None:
    with pytest.raises(ConfigError, match=f"Linear has no {granularity} group"):
        find_groups(nn.Linear(2, 2), granularity, (torch.randn(1, 2),))


def test_macs_of_a_group_are_what_the_network_saves_when_it_leaves() -> None:
    """Counted from LeNet-5's shapes: own layer's share on the writing side, the next layer's on the reading side."""
    model = build("lenet5", num_classes=10, in_channels=1, image_size=28)
    groups = find_groups(model, "coupled", (torch.zeros(1, 1, 28, 28),))
    conv1 = 24 * 24 * 25 + 8 * 8 * 25 * 50
    conv2 = 8 * 8 * 25 * 20 + 4 * 4 * 500
    fc1 = 800 + 10
    assert groups.macs is not None
    assert sorted(groups.macs.tolist()) == [fc1] * 500 + [conv2] * 50 + [conv1] * 20


def test_macs_of_a_filter_are_its_own() -> None:
    model = build("lenet5", num_classes=10, in_channels=1, image_size=28)
    groups = find_groups(model, "filter", (torch.zeros(1, 1, 28, 28),))
    assert groups.macs is not None
    assert sorted(groups.macs.tolist()) == [800] * 500 + [24 * 24 * 25] * 20 + [8 * 8 * 25 * 20] * 50


# --- kernels, input channels, BatchNorm scales -----------------------------------------------------------------------


def lenet() -> tuple[nn.Module, Tensor]:
    return build("lenet5", num_classes=10, in_channels=1, image_size=28), torch.zeros(1, 1, 28, 28)


def test_kernels_are_those_of_convolutions() -> None:
    model, _ = lenet()
    groups = find_groups(model, "kernel")
    assert [part.name for part in groups.slices] == ["conv1.weight", "conv2.weight"]
    assert groups.count == 20 * 1 + 50 * 20
    assert groups.sizes().tolist() == [25.0] * groups.count
    assert groups.macs is None
    with torch.no_grad():
        model.conv2.weight[7, 3] = 0.0
    assert groups.dead().nonzero().flatten().tolist() == [20 + 7 * 20 + 3]


def test_input_channels_are_read_by_one_layer_each_and_the_images_are_none() -> None:
    """Counted from LeNet-5's shapes: behind the flatten 16 pixels are one channel."""
    model, x = lenet()
    groups = find_groups(model, "channel", (x,))
    assert {part.name: part.dim for part in groups.slices} == {"conv2.weight": 1, "fc1.weight": 1, "fc2.weight": 1}
    assert sorted(groups.sizes().tolist()) == [10] * 500 + [50 * 25] * 20 + [500 * 16] * 50
    assert groups.macs is not None
    assert sorted(groups.macs.tolist()) == [10] * 500 + [16 * 500] * 50 + [8 * 8 * 25 * 50] * 20


class Grouped(nn.Module):
    """Six channels, read by a convolution of two groups, by a transposed one, and by a transposed one of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2)
        self.up, self.split = nn.ConvTranspose2d(4, 6, 2), nn.ConvTranspose2d(6, 8, 2, groups=2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.split(self.up(self.b(self.a(x).relu()).relu()).relu()).relu().mean((2, 3)))
        return out


def test_input_channels_of_grouped_and_transposed_convolutions() -> None:
    model = Grouped()
    groups = find_groups(model, "channel", (torch.randn(1, 3, 8, 8),))
    assert groups.count == 6 + 4 + 6 + 8
    sizes = {part.name: sorted(groups.sizes()[part.groups.unique()].tolist()) for part in groups.slices}
    assert sizes == {
        "b.weight": [2 * 9.0] * 6,
        "up.weight": [6 * 4.0] * 4,
        "split.weight": [4 * 4.0] * 6,
        "head.weight": [2.0] * 8,
    }
    # channel 4 is the second that the second group's two filters read
    part = next(part for part in groups.slices if part.name == "b.weight")
    with torch.no_grad():
        model.b.weight[2:, 1] = 0.0
    assert groups.dead().nonzero().flatten().tolist() == [int(part.groups[2, 1])]
    assert part.groups[2, 1] == part.groups[3, 1] != part.groups[0, 1]


def test_batch_norm_scales_are_groups_of_one_number_that_share_what_a_channel_saves() -> None:
    model, x = build("resnet20", num_classes=10), torch.randn(1, 3, 32, 32)
    groups, coupled = find_groups(model, "bn-scale", (x,)), find_groups(model, "coupled", (x,))
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert [part.name for part in groups.slices] == [f"{name}.weight" for name in norms]
    assert groups.count == sum(norm.num_features for norm in norms.values())
    assert groups.sizes().tolist() == [1.0] * groups.count
    assert groups.macs is not None
    assert coupled.macs is not None
    assert float(groups.macs.sum()) == pytest.approx(float(coupled.macs.sum()))
    # the first stage's stream passes the stem's BatchNorm and one a block
    stream, inner = group_of(groups, "bn1.weight", 5), group_of(groups, "stages.0.0.bn1.weight", 5)
    assert float(groups.macs[stream]) == pytest.approx(float(coupled.macs[group_of(coupled, "conv1.weight", 5)]) / 4)
    assert float(groups.macs[inner]) == pytest.approx(
        float(coupled.macs[group_of(coupled, "stages.0.0.conv1.weight", 5)])
    )


@pytest.mark.parametrize("granularity", ["filter", "channel", "bn-scale"])
@torch.no_grad()
def test_a_dead_group_is_a_channel_that_leaves(granularity: str) -> None:
    """A filter or scale of zeros makes a constant channel; of a column of zeros nobody reads the channel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    ).eval()
    randomise_(model)
    x = torch.randn(1, 1, 8, 8)
    reg = Regularizer(model, "l0", granularity, 1e-5, example_inputs=(x,))
    {"filter": model[0].weight[1], "channel": model[3].weight[:, 1], "bn-scale": model[1].weight[1:2]}[
        granularity
    ].mul_(1e-4)
    reg.prox_(torch.optim.SGD(model.parameters(), lr=0.1))
    assert int(reg.groups.dead().sum()) == 1
    result = compact(model, (x,))
    assert (result.model[0].out_channels, result.model[3].out_channels) == (3, 4)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(result.model(images), model(images), rtol=1e-4, atol=1e-5)
