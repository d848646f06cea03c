"""Pre-activation networks: a channel that one BatchNorm has silenced, and that other readers need."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ConfigError
from compress.surgery import compact, load, save_weights
from compress.surgery.layers import SelectsChannels

X, Y = (torch.randn(2, 3, size, size - 1, dtype=torch.float64) for size in (12, 17))
DEAD = [1, 4, 5]


class PreActivation(nn.Module):
    """A stream of 8 channels; two branches of BatchNorm, ReLU and convolution read it and are concatenated to it."""

    def __init__(self, padding=0):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (8, 16))
        self.convs = nn.ModuleList(nn.Conv2d(width, 8, 2 * padding + 1, padding=padding) for width in (8, 16))
        self.last, self.head = nn.BatchNorm2d(24), nn.Linear(24, 2)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat((x, conv(F.relu(norm(x)))), 1)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def silenced(randomise_, *, padding=0, shift=0.0):
    model = randomise_(PreActivation(padding))
    with torch.no_grad():
        model.norms[1].weight[DEAD] = 0
        model.norms[1].bias[DEAD] = shift
    return model


@pytest.mark.parametrize("shift", [0.0, 0.4])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_channel_leaves_for_one_reader_alone(randomise_, compact_exactly, shift, padding):
    model = silenced(randomise_, padding=padding, shift=shift)
    result = compact_exactly(model, X, Y, select="always")
    gone = 2 if padding and shift else 3  # one carries the others' constant
    norm = result.model.norms[1]
    assert isinstance(norm, SelectsChannels)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == 16 - gone == result.model.convs[1].in_channels
    assert result.report.selections == {"norms.1": (16 - gone, 16)}
    assert [layer.after for layer in result.report.layers.values()] == [8, 8, 8, 2]  # the stream keeps its channels
    assert set(range(16)) - set(norm.selected.tolist()) <= set(DEAD)


def test_the_index_counts_the_channels_that_stay(randomise_, kill_, compact_exactly):
    """Channels 0 and 3 leave the stream altogether; the index behind is that of the compact stream."""
    model = silenced(randomise_)
    kill_(model.stem, [0, 3])
    for norm in (*model.norms, model.last):
        kill_(norm, [0, 3])
    result = compact_exactly(model, X, Y, select="always")
    assert result.model.stem.out_channels == 6
    assert result.plan.selections == {"norms.1": [i - sum(g < i for g in (0, 3)) for i in (2, 6, 7, *range(8, 16))]}


def test_never_keeps_the_class_without_an_index(randomise_, compact_exactly):
    result = compact_exactly(silenced(randomise_), X, Y, select="never")
    assert result.report.selections == {}
    assert result.model.norms[1].num_features == 16


@pytest.mark.parametrize(("outputs", "selected"), [(2, False), (128, True)])
def test_auto_inserts_an_index_where_it_saves_more_than_it_costs(net, randomise_, kill_, outputs, selected):
    """Of 8 channels 2 are silent: what is copied are 6, what is saved 2 for each output."""
    model = net(
        lambda m, x: m.head(torch.cat((y := m.a(x), m.c(F.relu(m.bn(y)))), 1).mean((2, 3))),
        a=nn.Conv2d(3, 8, 1),
        bn=nn.BatchNorm2d(8),
        c=nn.Conv2d(8, outputs, 1),
        head=nn.Linear(8 + outputs, 2),
    )
    kill_(randomise_(model).bn, [2, 7])
    assert bool(compact(model, (X,)).report.selections) is selected


def test_an_unread_channel_is_left_out_like_a_silent_one(randomise_, compact_exactly):
    model = randomise_(PreActivation())
    with torch.no_grad():
        model.convs[1].weight[:, DEAD] = 0
    result = compact_exactly(model, X, Y, select="always")
    assert result.report.selections == {"norms.1": (13, 16)}


def test_plan_and_weights_rebuild_it(randomise_, tmp_path):
    result = compact(silenced(randomise_, shift=0.4), (X,), select="always")
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "weights.safetensors")
    rebuilt = load(tmp_path / "plan.json", tmp_path / "weights.safetensors", base=lambda: PreActivation().double())
    with torch.no_grad():
        assert torch.equal(rebuilt(X), result.model(X))


def test_it_can_be_compacted_again(randomise_, compact_exactly):
    """A network that selects already is one like any other; its index is left as it is."""
    once = compact(silenced(randomise_), (X,), select="always").model
    with torch.no_grad():
        once.norms[0].weight[[2, 3]] = 0
        once.norms[0].bias[[2, 3]] = 0
    twice = compact_exactly(once, X, Y, select="always")
    assert twice.report.selections == {"norms.0": (6, 8)}
    assert twice.model.norms[1].num_features == 13


def test_it_trains_and_is_exported_with_one_gather(randomise_, tmp_path):
    import onnx

    from export import to_onnx

    model = compact(silenced(randomise_).float(), (X.float(),), select="always").model
    to_onnx(model, (X.float(),), tmp_path / "net.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node].count("Gather") == 1
    model.train()
    model(X.float()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_an_unknown_choice_is_refused(randomise_):
    with pytest.raises(ConfigError, match=r"select='sometimes'; known: auto, never, always\."):
        compact(PreActivation(), (X.float(),), select="sometimes")
