"""``prune_``: the target is met by the network that compact makes of it, with random weights."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.errors import ConfigError
from compress.groups import find_groups
from compress.models import build
from compress.pruning import Policy, Target, prune_
from compress.surgery import compact

NETWORKS = {"lenet5": (1, 28), "vgg11": (3, 32), "resnet20": (3, 32), "torchvision:mobilenet_v2": (3, 64)}
LONG = {
    ("resnet20", "params"),
    ("vgg11", "macs"),
    *(("torchvision:mobilenet_v2", kind) for kind in ("macs", "params")),
}


@pytest.fixture
def network(randomise_, grouped):
    """Name -> (network, example)."""

    def make(name):
        torch.manual_seed(0)
        if name in (widths := {"grouped": 24, "wide-grouped": 96}):
            return grouped(widths[name], 4), torch.randn(1, 3, 12, 12)
        channels, size = NETWORKS[name]
        model = build(name, num_classes=10, in_channels=channels, image_size=size)
        return randomise_(model), torch.randn(1, channels, size, size)

    return make


def labelled(x, n=6):
    images = torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(2))
    return [(images[:3], torch.arange(3)), (images[3:], torch.arange(3, n))]


def removed_share(report, before, after):
    return getattr(report, after) / getattr(report, before)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=[pytest.mark.slow] * ((name, target.kind) in LONG), id=f"{name}-{target.kind}")
        for name in (*NETWORKS, "grouped")
        for target in (Target("macs", 0.5), Target("params", 0.35))
    ],
)
def test_the_compact_network_meets_the_target_within_one_percent(name, target, network):
    model, x = network(name)
    report = prune_(model, (x,), target)
    made = compact(model, (x,)).report
    assert (report.macs_after, report.params_after) == (made.macs_after, made.params_after)
    assert (report.macs_before, report.params_before) == (made.macs_before, made.params_before)
    got = {
        "macs": report.macs_after / report.macs_before,
        "params": report.params_after / report.params_before,
    }[target.kind]
    assert abs(got - target.value) <= 0.01
    assert made.kept == {}  # whatever was zeroed has left
    assert report.layers == {layer: (width.before, width.after) for layer, width in made.layers.items()}


@pytest.mark.parametrize(
    ("criterion", "per_layer"),
    [
        ("magnitude", True),
        ("bn-scale", False),
        ("taylor", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("magnitude", False), ("bn-scale", True), ("taylor", False))
        ),
    ],
)
def test_every_criterion_meets_it_globally_and_per_layer(criterion, per_layer, network):
    model, x = network("resnet20")
    report = prune_(model, (x,), Target("macs", 0.6), Policy(criterion, per_layer=per_layer), labelled(x))
    assert abs(report.macs_after / report.macs_before - 0.6) <= 0.01
    if per_layer:
        shares = [after / before for before, after in report.layers.values() if before >= 16]
        assert max(shares) - min(shares) <= 0.2  # rounded to whole channels, the last ones to fit the target


def test_the_least_important_groups_are_exactly_zero_and_others_untouched(plain):
    model = plain(8, 16)
    before = copy.deepcopy(model)
    x = torch.randn(1, 3, 8, 8)
    groups = find_groups(model, "coupled", (x,))
    norms = groups.squared_norms().sqrt()
    report = prune_(model, (x,), Target("keep-ratio", 0.5), Policy(normalise="none"))
    assert (report.groups, report.zeroed, report.fixed) == (24, 12, 0)
    dead = groups.dead()
    assert int(dead.sum()) == 12
    assert report.highest_zeroed == pytest.approx(float(norms[dead].max()))
    assert report.highest_zeroed < report.lowest_kept
    assert report.lowest_kept == pytest.approx(float(norms[~dead].min()))
    for name, parameter in model.named_parameters():
        assert ((parameter == before.get_parameter(name)) | (parameter == 0)).all()
    assert torch.equal(model.head.weight, before.head.weight)
    assert all(torch.equal(b, before.get_buffer(name)) for name, b in model.named_buffers())


def test_a_threshold_takes_what_is_below_it(plain):
    model = plain(8, 16)
    x = torch.randn(1, 3, 8, 8)
    groups = find_groups(model, "coupled", (x,))
    norms = groups.squared_norms().sqrt()
    limit = float(norms.sort().values[5:7].mean())
    report = prune_(model, (x,), Target("threshold", limit), Policy(normalise="none"))
    assert report.zeroed == 6
    assert torch.equal(groups.dead(), norms < limit)


def test_per_layer_keeps_the_same_share_of_each(plain):
    model = plain(8, 20)
    report = prune_(model, (torch.randn(1, 3, 8, 8),), Target("keep-ratio", 0.75), Policy(per_layer=True))
    assert report.layers == {"a": (8, 6), "b": (20, 15), "head": (5, 5)}


def test_per_layer_counts_channels_not_blocks(plain):
    """Of 20 channels in blocks of 8 four leave first: then 8 of what is left are the next ones below the half."""
    model = plain(20, 48)
    policy = Policy(per_layer=True, round_to=8)
    report = prune_(model, (torch.randn(1, 3, 8, 8),), Target("keep-ratio", 0.5), policy)
    assert report.layers == {"a": (20, 8), "b": (48, 24), "head": (5, 5)}


def test_floors_hold(plain):
    model = plain(8, 20)
    x = torch.randn(1, 3, 8, 8)
    report = prune_(model, (x,), Target("keep-ratio", 0.6), Policy(min_channels=8))
    assert report.layers["a"] == (8, 8)
    assert report.groups - report.zeroed == 17


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "wide-grouped"])
@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_that_were_pruned_are_multiples(network, name, round_to):
    model, x = network(name)
    report = prune_(model, (x,), Target("macs", 0.5), Policy(round_to=round_to))
    assert abs(report.macs_after / report.macs_before - 0.5) <= 0.01
    changed = {layer: after for layer, (before, after) in report.layers.items() if after != before}
    assert changed
    assert all(after % round_to == 0 for after in changed.values())
    again = compact(model, (x,)).report  # no channel is there only to fill a block
    assert {layer: width.after for layer, width in again.layers.items()} == {
        layer: after for layer, (_, after) in report.layers.items()
    }


class Joined(nn.Module):
    """Layers of 20 and 12 channels side by side, and a depthwise one and a residual over all of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.inner, self.outer = nn.Conv2d(32, 40, 1), nn.Conv2d(40, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.depthwise(torch.cat((self.a(x), self.b(x)), 1).relu()).relu()
        return self.head((x + self.outer(self.inner(x).relu())).relu().mean((2, 3)))


@pytest.mark.parametrize("target", [Target("keep-ratio", 0.6), Target("threshold", 0.95), Target("macs", 0.45)])
@pytest.mark.parametrize("name", ["joined", "wide-grouped", "plain"])
def test_nothing_is_zeroed_only_to_fill_a_block(network, plain, randomise_, name, target):
    own = {"joined": lambda: randomise_(Joined()), "plain": lambda: plain(30, 45)}
    model, x = (own[name](), torch.randn(1, 3, 8, 8)) if name in own else network(name)
    report = prune_(model, (x,), target, Policy(round_to=8))
    changed = {layer: after for layer, (before, after) in report.layers.items() if after != before}
    assert all(after % 8 == 0 for after in changed.values())
    assert changed
    for layer, (_, after) in report.layers.items():
        assert int((model.get_submodule(layer).weight != 0).flatten(1).any(1).sum()) == after


def test_a_target_for_which_no_whole_block_leaves_is_refused(randomise_):
    """Of ``a`` twelve channels are small; without a first block, which takes four of each layer, the rest fills up."""
    model = randomise_(Joined())
    with torch.no_grad():
        for part in (model.a, model.depthwise, model.outer):
            part.weight[:12] *= 1e-3
            part.bias[:12] *= 1e-3
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="no layer can lose a whole block of 8 channels"):
        prune_(model, (torch.randn(1, 3, 8, 8),), Target("threshold", 0.1), Policy(round_to=8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_dead_channels_that_fill_blocks_leave_first(plain):
    model = plain(16, 32)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for part in (model.a.weight, model.norm.weight, model.norm.bias):
            part[:5] = 0  # 11 live: five fill the block of 16
    report = prune_(model, (x,), Target("keep-ratio", 40 / 48), Policy(round_to=8, normalise="none"))
    assert report.layers == {"a": (16, 8), "b": (32, 32), "head": (5, 5)}
    assert int(model.norm.weight.count_nonzero()) == 8


def test_groups_of_a_convolution_lose_equally_many(grouped):
    model = grouped(24, 4)
    report = prune_(
        model,
        (torch.randn(1, 3, 12, 12),),
        Target("keep-ratio", 0.6),
        Policy("taylor"),
        labelled(torch.zeros(1, 3, 12, 12)),
    )
    rows = (model.split.weight != 0).flatten(1).any(1).reshape(4, -1).sum(1)
    assert len(set(rows.tolist())) == 1
    assert report.layers["split"][1] == int(rows.sum()) < 48
    assert report.layers["stem"][1] % 4 == 0


def test_groups_that_a_criterion_cannot_judge_stay(plain):
    model = plain(8, 20)
    report = prune_(model, (torch.randn(1, 3, 8, 8),), Target("keep-ratio", 0.9), Policy("bn-scale"))
    assert report.fixed == 20  # the channels of b
    assert report.layers == {"a": (8, 5), "b": (20, 20), "head": (5, 5)}


def test_what_is_dead_already_counts_as_gone(network):
    model, x = network("grouped")
    first = prune_(model, (x,), Target("macs", 0.5))
    second = prune_(model, (x,), Target("macs", 0.5))
    assert (second.macs_before, second.params_before) == (first.macs_after, first.params_after)
    assert second.groups == first.groups - first.zeroed
    assert abs(second.macs_after / second.macs_before - 0.5) <= 0.01
    assert {layer: before for layer, (before, _) in second.layers.items()} == {
        layer: after for layer, (_, after) in first.layers.items()
    }


def test_dead_channels_with_a_constant_are_left_to_surgery(plain):
    model = plain(8, 20)
    with torch.no_grad():
        model.b.weight[:10] = 0
        model.b.bias[:10] = 0.7  # constants that fold into the head
    report = prune_(model, (torch.randn(1, 3, 8, 8),), Target("params", 0.6))
    assert report.groups == 18
    assert report.layers["b"][0] == 10
    assert (model.b.bias[:10] == 0.7).all()
    assert abs(report.params_after / report.params_before - 0.6) <= 0.01


def test_carriers_are_paid_for(randomise_):
    """A channel that is constant but not 0 when its weights are: one of them must stay for the padded reader."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 64, 3, padding=1)
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            y = self.b(self.a(x).sigmoid()).relu()
            return self.head(y.mean((2, 3)))

    model, x = randomise_(Shifted()), torch.randn(1, 3, 12, 12)
    report = prune_(model, (x,), Target("macs", 0.5), Policy(per_layer=True))
    kept = compact(model, (x,)).report.kept
    assert "carried for the padded b" in kept["a"]
    assert abs(report.macs_after / report.macs_before - 0.5) <= 0.01


def test_channels_that_cannot_leave_evenly_are_no_candidates(randomise_):
    class Crossing(nn.Module):
        """The second convolution's groups lie across the first one's, and not evenly."""

        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(4, 12, 3, groups=2)
            self.b = nn.Conv2d(15, 15, 3, groups=3)
            self.c = nn.Conv2d(4, 3, 3)
            self.head = nn.Linear(15, 30)
            self.out = nn.Linear(30, 4)

        def forward(self, x):
            y = torch.cat((self.a(x), self.c(x)), 1).relu()
            return self.out(self.head(self.b(y).relu().mean((2, 3))).relu())

    model, x = randomise_(Crossing()), torch.randn(1, 4, 9, 9)
    report = prune_(model, (x,), Target("keep-ratio", 0.7))
    assert report.fixed == 12 + 3  # what a and c write
    assert report.layers["a"] == (12, 12)
    assert report.layers["b"][1] % 3 == 0


def test_channels_that_forward_splits_are_left_alone_where_surgery_cannot_take_them_out(randomise_):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 40, 3)
            self.head = nn.Linear(40, 10)

        def forward(self, x):
            one, other = self.a(x).relu().split(8, dim=1)
            return self.head(self.b(one + other).relu().mean((2, 3)))

    model, x = randomise_(Halves()), torch.randn(1, 3, 12, 12)
    report = prune_(model, (x,), Target("macs", 0.7))
    made = compact(model, (x,)).report
    assert made.kept == {}
    assert report.macs_after == made.macs_after
    assert abs(report.macs_after / report.macs_before - 0.7) <= 0.01


REFUSALS = {
    "too little": (
        Target("params", 0.001),
        Policy(),
        r"params 0\.001 \(1 of 705 parameters\) cannot be reached within 10% of itself: every layer keeps",
    ),
    "floors": (
        Target("macs", 0.3),
        Policy(min_channels=7),
        r"at least 7 channels \(min_channels\), .* is 36,318 MACs \(87\.51%\)",
    ),
    "whole channels": (
        Target("macs", 0.9),
        Policy(),
        r"within 1%: channels leave whole; the nearest that was found is",
    ),
    "ratio": (
        Target("keep-ratio", 0.2),
        Policy(min_channels=7),
        r"keep-ratio 0\.2 \(3 of 14 groups\) cannot be reached",
    ),
    "ratio per layer": (
        Target("keep-ratio", 0.2),
        Policy(per_layer=True, min_channels=7),
        r"the nearest that was found is 13 groups \(92\.86%\)",
    ),
    "nothing to do": (Target("macs", 0.999), Policy(), r"macs 0\.999 .*: no group has to leave for it; ask for less"),
    "nothing to round": (Target("keep-ratio", 0.96), Policy(per_layer=True), "no group has to leave for it"),
    "nothing below": (Target("threshold", 1e-9), Policy(), r"no group is below it and may leave; scores run from"),
    "per layer": (Target("threshold", 1.0), Policy(per_layer=True), "per_layer would change nothing"),
    "more than there is": (Target("params", 1e9), Policy(), r"the network has [\d,]+ parameters as it is"),
    "no images": (Target("macs", 0.5), Policy("taylor"), "criterion taylor judges by images"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_be_reached_is_refused_and_changes_nothing(refusal, plain):
    target, policy, message = REFUSALS[refusal]
    model = plain(8, 6).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        prune_(model, (torch.randn(1, 3, 8, 8),), target, policy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_network_that_can_lose_nothing_is_refused():
    with pytest.raises(ConfigError, match="Linear has no channels that could leave it"):
        prune_(nn.Linear(4, 3), (torch.randn(1, 4),), Target("params", 0.5))


def test_an_error_in_surgery_gives_the_weights_back(plain, monkeypatch):
    model = plain()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr("compress.pruning.prune.compact", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        prune_(model, (torch.randn(1, 3, 8, 8),), Target("keep-ratio", 0.5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_documents_example_runs(plain):
    text = Path(__file__).parents[2].joinpath("docs", "pruning.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model, x = plain(48, 64), torch.randn(1, 3, 8, 8)
    names = {"model": model, "x": x, "loader": labelled(x, 5)}
    exec(code, names)
    report, result = names["report"], names["result"]
    assert abs(report.macs_after / report.macs_before - 0.5) <= 0.01
    assert result.report.macs_after == report.macs_after
    assert [width.after % 8 for name, width in result.report.layers.items() if name != "head"] == [0, 0]
