"""What once went wrong, each in the smallest network that shows it."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import VerificationError
from compress.surgery import compact, load, save_weights
from compress.surgery.verify import certify
from small_networks import pooled

X, Y = (torch.randn(2, 3, size, size + 1, dtype=torch.float64) for size in (11, 16))


@pytest.mark.parametrize("form", ["class", "graph"])
def test_nothing_behind_a_constant_layer_writes_to_its_parameter(net, randomise_, form):
    model = net(
        lambda m, x: m.c((h := torch.relu(m.a(x))) + m.d(h).mul_(2)),
        a=nn.Linear(4, 8),
        d=nn.Linear(8, 8),
        c=nn.Linear(8, 3),
    )
    randomise_(model).d.weight.data.zero_()
    x = torch.randn(1, 4, dtype=torch.float64)
    small = compact(model, (x,), prefer=form).model
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_transposed_convolutions_are_cut_and_reported(net, randomise_, compact_exactly, groups):
    up = nn.ConvTranspose2d(8, 16, 4, 2, 1, groups=groups)
    model = net(lambda m, x: pooled(m, F.relu(m.up(m.a(x)))), a=nn.Conv2d(3, 8, 3), up=up, head=nn.Linear(16, 2))
    randomise_(model).head.weight.data[:, [0, 1, 8, 9]] = 0
    if groups == 8:  # each input has two outputs: these are those of the channels 0 and 4
        model.up.weight.data[[0, 4]] = 0
    result = compact_exactly(model, X, Y)
    assert result.model.up.out_channels == 12


def test_a_selecting_network_can_be_compacted_again_when_its_stream_is_cut(net, randomise_, compact_exactly):
    model = net(
        lambda m, x: pooled(m, torch.cat((y := m.a(x), m.c(F.relu(m.bn(y)))), 1)),
        a=nn.Conv2d(3, 8, 1),
        bn=nn.BatchNorm2d(8),
        c=nn.Conv2d(8, 16, 1),
        head=nn.Linear(24, 2),
    )
    randomise_(model).bn.weight.data[[2, 7]] = 0
    once = compact_exactly(model, X, Y, select="always").model
    with torch.no_grad():
        once.c.weight[:, [0, 1]] = 0
        once.head.weight[:, [2, 7]] = 0  # nobody reads these any more
    for select in ("always", "auto", "never"):
        compact_exactly(once, X, Y, select=select)


class OwnNorm(nn.Module):
    """A normalisation with buffers of its own names."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias)


@pytest.mark.parametrize("form", ["class", "graph"])
def test_normalisations_of_other_classes_are_not_selected(net, randomise_, compact_exactly, form):
    model = net(
        lambda m, x: pooled(m, torch.cat((y := m.a(x), m.c(F.relu(m.norm(y)))), 1)),
        a=nn.Conv2d(3, 8, 1),
        norm=OwnNorm(),
        c=nn.Conv2d(8, 16, 1),
        head=nn.Linear(24, 2),
    )
    randomise_(model).norm.weight.data[[2, 7]] = 0
    assert compact_exactly(model, X, Y, select="always", prefer=form).report.selections == {}


def test_a_layer_that_forward_asks_for_its_attributes_stays_a_layer(net, randomise_, compact_exactly):
    model = net(
        lambda m, x: pooled(m, m.a(x) + m.b(x).to(m.b.weight.dtype)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(3, 8, 3),
        head=nn.Linear(8, 2),
    )
    randomise_(model).b.weight.data.zero_()
    result = compact_exactly(model, X, Y)
    assert result.report.constant_layers == ()
    assert isinstance(result.model.b, nn.Conv2d)


@pytest.mark.parametrize("dead", [7, 8])
def test_a_depthwise_layer_may_be_left_with_one_channel(net, randomise_, kill_, compact_exactly, dead):
    model = net(
        lambda m, x: pooled(m, F.relu(m.c(F.relu(m.bn(m.b(F.relu(m.a(x)))))) + m.d(x))),
        a=nn.Conv2d(3, 8, 1, bias=False),
        b=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        bn=nn.BatchNorm2d(8),
        c=nn.Conv2d(8, 5, 1),
        d=nn.Conv2d(3, 5, 1),
        head=nn.Linear(5, 2),
    )
    randomise_(model)
    kill_(model.bn, list(range(dead)))
    result = compact_exactly(model, X, Y)
    assert {name: result.report.layers[name].after for name in "ab"} == {"a": 1, "b": 1}


def test_a_prelu_may_be_left_with_one_channel(net, randomise_, kill_, compact_exactly):
    model = net(lambda m, x: pooled(m, m.act(m.a(x))), a=nn.Conv2d(3, 8, 1), act=nn.PReLU(8), head=nn.Linear(8, 2))
    kill_(randomise_(model).a, list(range(7)))
    assert compact_exactly(model, X, Y).report.layers["a"].after == 1


def test_a_small_output_beside_a_large_one_is_compared_by_itself(net, randomise_):
    model = randomise_(
        net(lambda m, x: (pooled(m, m.a(x)), x.mean((2, 3)) * 1e12), a=nn.Conv2d(3, 8, 1), head=nn.Linear(8, 2))
    )
    other = compact(model, (X,)).model
    other.head.bias.data += 1
    with pytest.raises(VerificationError, match="differs from the original"):
        certify(model, other, None, (X,))


def test_plans_load_into_networks_with_masks(net, randomise_, kill_, tmp_path):
    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
        torch.nn.utils.prune.random_unstructured(model[2], "weight", 0.5)
        return model.double()

    model = make()
    kill_(model[0], [1, 2])
    result = compact(model, (X,))
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "weights.safetensors")
    rebuilt = load(tmp_path / "plan.json", tmp_path / "weights.safetensors", base=make)
    with torch.no_grad():
        assert torch.equal(rebuilt(X), result.model(X))


def test_a_selecting_network_can_be_pickled(randomise_):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    from compress.surgery.layers import select_channels_

    select_channels_(model[0], [0, 1, 2])
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    with torch.no_grad():
        assert torch.equal(again.eval()(X.float()), model.eval()(X.float()))
