"""Dead channels that fill the last block of a layer: widths are multiples, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.graph import channel_graph
from compress.surgery import Plan, compact
from compress.surgery.onnx_compact import compact_onnx
from compress.surgery.rounding import filled
from export import to_onnx

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OTHER = torch.randn(1, 3, 17, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Block(nn.Module):
    """A residual of a wide depthwise block, a grouped convolution, and both joined: every way in which widths meet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.wide = nn.Conv2d(20, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.narrow = nn.Conv2d(48, 20, 1)
        self.grouped = nn.Conv2d(20, 40, 3, groups=4)
        self.last = nn.Conv2d(60, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.narrow(self.depthwise(self.wide(x).relu()).relu())
        y = torch.cat((self.grouped(x), x[:, :, 1:-1, 1:-1]), 1)
        return self.head(self.last(y).relu().mean((2, 3)))


def widths(model: nn.Module) -> dict[str, int]:
    return {name: layer.weight.shape[0] for name, layer in model.named_modules() if hasattr(layer, "weight")}


def test_dead_channels_fill_the_last_block(randomise_: Callable, kill_: Callable, compact_exactly: Callable) -> None:
    model = randomise_(nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 7, 1), nn.Flatten(1)))
    kill_(model[0], list(range(4, 11)), value=0.5)  # 13 live
    sizes = {m: compact_exactly(model, X, round_to=m).model[0].out_channels for m in (1, 4, 8, 16, 32)}
    assert sizes == {1: 13, 4: 16, 8: 16, 16: 16, 32: 20}  # 20 is all there is
    layer = compact(model, (X,), round_to=8).report.layers["0"]
    assert (layer.after, layer.kept) == (16, {"fills the width up to a multiple of 8": 3})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("round_to", [4, 8])
@pytest.mark.parametrize("prefer", ["class", "graph"])
def test_every_width_is_a_multiple_or_what_it_was(
    randomise_: Callable, kill_free_: Callable, compact_exactly: Callable, seed: int, round_to: int, prefer: str
) -> None:
    model = randomise_(Block(), seed)
    kill_free_(model, X, share=0.6, shift=0.3, seed=seed)
    result = compact_exactly(model, X, OTHER, round_to=round_to, prefer=prefer)
    before, least = widths(model), compact(model, (X,)).report.layers
    for name, layer in result.report.layers.items():
        assert layer.after % round_to == 0 or layer.after == before[name]
        assert least[name].after <= layer.after
    assert result.report.params_after < result.report.params_before
    assert min(layer.after for layer in result.report.layers.values()) < 24


def test_no_more_stays_than_fills_the_block(randomise_: Callable, kill_: Callable, compact_exactly: Callable) -> None:
    """Widths that the blocks fit anyway are those without rounding; a residual is rounded once."""
    model = randomise_(Block())
    kill_(model.wide, list(range(32)))
    kill_(model.depthwise, list(range(32)))
    assert compact_exactly(model, X, OTHER, round_to=8).report.layers["wide"].after == 16
    for part in (model.stem, model.norm, model.narrow):
        kill_(part, [5 * group + channel for group in range(4) for channel in (0, 2)])  # 12 live, 3 in each group
    for round_to, width in ((4, 12), (8, 16), (16, 16)):
        after = compact_exactly(model, X, OTHER, round_to=round_to).report.layers
        assert [after[name].after for name in ("stem", "narrow")] == [width, width]


def test_rounding_alone_is_no_reason_for_a_graph(randomise_: Callable, kill_: Callable, compact_exactly: Callable):
    model = randomise_(nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 7, 1), nn.Flatten(1)))
    kill_(model[0], [1, 2, 3])
    assert compact_exactly(model, X, round_to=8, prefer="smallest").report.form == "class"


def test_a_rounded_plan_makes_the_same_network_again(
    randomise_: Callable, kill_free_: Callable, tmp_path: Path
) -> None:
    model = randomise_(Block())
    kill_free_(model, X, share=0.6, shift=0.3)
    result = compact(model, (X,), round_to=8)
    result.plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json").rebuild(model)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again(X), result.model(X))


def test_files_are_rounded_likewise(randomise_: Callable, kill_: Callable, tmp_path: Path) -> None:
    model = randomise_(nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 7, 1), nn.Flatten(1))).float()
    kill_(model[0], list(range(4, 11)), value=0.5)
    to_onnx(model, (X.float(),), tmp_path / "model.onnx")
    layers = [compact_onnx(tmp_path / "model.onnx", round_to=m).report.layers.values() for m in (1, 8)]
    assert [next(iter(some)).after for some in layers] == [13, 16]


@pytest.mark.parametrize("round_to", [0, -8, 2.5, True, "8"])
def test_what_is_no_block_is_refused(round_to: object) -> None:
    with pytest.raises(ConfigError, match=r"round_to=.*whole number of channels"):
        compact(nn.Conv2d(3, 4, 1), (X.float(),), round_to=round_to)


def test_a_layer_is_filled_with_channels_that_are_in_no_other() -> None:
    """Layer A has channels 0 to 5, B 4 to 9."""
    rows = [torch.arange(6), torch.arange(4, 10)]
    removed = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 1, 1]).bool()
    left = filled(rows, removed, 4)
    assert [int((~left[row]).sum()) for row in rows] == [4, 4]
    assert not bool((left & ~removed).any())
    assert torch.equal(filled(rows, removed, 1), removed)


def test_channels_that_leave_together_are_counted_in_every_layer(randomise_: Callable) -> None:
    graph = channel_graph(randomise_(Block()), (X,))
    rows = [classes for (name, _), classes in graph.out_slices().items() if graph.tensors[name].ndim > 1]
    generator = torch.Generator().manual_seed(0)
    removed = graph.free() & (torch.rand(graph.classes.count, generator=generator) < 0.7)
    left = filled(rows, removed, 8)
    for classes in rows:
        stay = int((~left[classes]).sum())
        assert stay % 8 == 0 or stay == classes.numel() or not bool(left[classes].any())


def test_slow_widths_are_told(randomise_: Callable, kill_: Callable, tmp_path: Path) -> None:
    model = randomise_(Block()).float()
    assert compact(model, (X.float(),)).report.notes == ()
    for part in (model.wide, model.depthwise):
        kill_(part, list(range(9)))
    [note] = compact(model, (X.float(),)).report.notes
    assert note.startswith("1 depthwise convolution has a width that is no multiple of 4")
    assert compact(model, (X.float(),), round_to=4).report.notes == ()
    to_onnx(model, (X[:1].float(),), tmp_path / "model.onnx")
    assert compact_onnx(tmp_path / "model.onnx").report.notes == (note,)


class Heads(nn.Module):
    """Attention of four heads, with a temperature for each, as Swin v2 and XCiT have it."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.qkv, self.out = nn.Linear(16, 12 * width), nn.Linear(4 * width, 16)
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, -1, self.width).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("width", "round_to", "left"), [(24, 16, 2), (36, 8, 2), (8, 8, 1), (16, 8, 1)])
def test_no_more_heads_stay_than_fill_the_block(randomise_: Callable, width: int, round_to: int, left: int) -> None:
    """Three of four heads are dead: that there are four temperatures is no reason to keep them."""
    model = randomise_(Heads(width))
    with torch.no_grad():
        model.out.weight[:, width:] = 0
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    result = compact(model, (x,), prefer="smallest", round_to=round_to)
    assert result.report.layers["qkv"].after == 3 * left * width
    torch.testing.assert_close(result.model(x), model(x))
