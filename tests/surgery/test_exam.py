"""The quick part of the exam of surgery: small networks of each kind, both ways of dying.

`make exam` runs the whole: every torchvision model, and a member of each timm family.
"""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.torchvision_compat import torchvision

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SIZE = 32


@pytest.fixture
def exam(monkeypatch):
    """The exam's modules, imported as its command does it."""
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return importlib.import_module


# --- the networks ----------------------------------------------------------------------------------------------------


def residual() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10)


def grouped() -> nn.Module:
    """RegNet with gates: groups of four channels, and of eight."""
    regnet = torchvision.models.regnet
    blocks = regnet.BlockParams([1, 2], [16, 32], [4, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return regnet.RegNet(blocks, num_classes=10, stem_width=8)


def depthwise_with_gates() -> nn.Module:
    """MobileNetV3: expansion, depthwise convolution, squeeze-and-excitation, linear projection."""
    config = torchvision.models.mobilenetv3.InvertedResidualConfig
    blocks = [
        config(16, 3, 32, 16, True, "RE", 2, 1, 1.0),
        config(16, 3, 48, 24, False, "HS", 2, 1, 1.0),
        config(24, 5, 64, 24, True, "HS", 1, 1, 1.0),
    ]
    return torchvision.models.MobileNetV3(blocks, last_channel=64, num_classes=10)


def dense() -> nn.Module:
    return torchvision.models.DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16, num_classes=10)


def shuffled() -> nn.Module:
    return torchvision.models.ShuffleNetV2([2, 1, 1], [16, 32, 64, 128, 64], num_classes=10)


def transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(SIZE, 8, 2, 2, 32, 64, num_classes=10)


def segmentation() -> nn.Module:
    """FCN with its second head: two outputs in a dictionary."""
    fcn = torchvision.models.segmentation.fcn
    features = torchvision.models._utils.IntermediateLayerGetter(
        depthwise_with_gates().features, {"4": "out", "3": "aux"}
    )
    return fcn.FCN(features, fcn.FCNHead(144, 3), fcn.FCNHead(24, 3))


NETWORKS = {
    "grouped": (grouped, 1.0),
    "depthwise": (depthwise_with_gates, 1.0),
    "dense": (dense, 1.0),
    "shuffle": (shuffled, 0.5),  # the class splits its channels in two halves: what is uneven stays
    "transformer": (transformer, 0.4),  # queries, keys and values stay: 96 of 160 dead channels
    "segmentation": (segmentation, 1.0),
}
"""Name -> (builder, the share of what is removable that must be removed in case a)."""

QUICK_B = ("depthwise", "transformer")  # case b of the others takes as long again


@pytest.fixture
def network(exam, request):
    networks = exam("exam_networks")
    return networks.Network("tests", request.param, request.param, SIZE, NETWORKS[request.param][0])


# --- the exam --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "case"),
    [
        pytest.param(name, case, marks=[pytest.mark.slow] * (case == "b" and name not in QUICK_B))
        for name in NETWORKS
        for case in ("a", "b")
    ],
    indirect=["network"],
)
def test_compact_agrees_with_masked(exam, network, case):
    in_onnx = (network.name, case) == ("dense", "a")  # the export takes longer than all the rest
    row = exam("exam_check").examine(network, case, onnx=in_onnx)
    assert row.status == "ok", row.note
    assert row.errors["float64"] <= 1e-10
    assert row.errors["float32"] <= 1e-5
    assert not in_onnx or 0 < row.errors["onnx"] <= 1e-4
    assert row.sensitivity > 1e-3
    assert len(row.shapes) == (1 if network.name == "transformer" else 2)
    assert row.dead > 30
    assert 0 <= row.removed <= row.dead
    if case == "a":
        assert row.removed + row.carried + sum(row.kept.values()) + sum(row.missed.values()) == row.dead
        assert row.share >= NETWORKS[network.name][1]


# --- the exam can fail -----------------------------------------------------------------------------------------------


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 4))


def test_a_compact_network_that_computes_something_else_is_wrong(exam, monkeypatch):
    check = exam("exam_check")

    def spoilt(model, example, prefer):
        result = real(model, example, prefer)
        result.model[4].bias += 1e-3
        return result

    real = check.run_compact
    monkeypatch.setattr(check, "run_compact", spoilt)
    row = check.examine(exam("exam_networks").Network("tests", "plain", "plain", SIZE, plain), "a", onnx=False)
    assert row.status == "wrong"
    assert 1e-5 < row.errors["float32"] < 1e-2


class Deaf(nn.Module):
    """A network whose output hardly depends on its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)) * 1e-6 + 1)


def test_a_network_that_ignores_its_input_shows_nothing(exam):
    network = exam("exam_networks").Network("tests", "deaf", "deaf", SIZE, Deaf)
    row = exam("exam_check").examine(network, "a", onnx=False)
    assert row.status == "insensitive"
    assert row.sensitivity < 1e-3


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such thing")


def test_a_network_that_breaks_is_a_row(exam):
    network = exam("exam_networks").Network("tests", "broken", "broken", SIZE, Broken)
    row = exam("exam_check").examine(network, "a")
    assert row.status == "refused"
    assert "no such thing" in row.note


# --- what the exam does to networks ----------------------------------------------------------------------------------


def test_half_of_the_inner_channels_die_with_shifts_that_do_not(exam):
    from compress.graph import channel_graph

    damage = exam("exam_damage")
    model = residual().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        damage.randomise_(model, generator)
        killed = damage.kill_groups_(model, channel_graph(model, (torch.randn(1, 3, SIZE, SIZE),)), generator)
    assert set(killed) == {name for name, p in model.named_parameters() if p.ndim > 1}
    for name, rows in killed.items():
        weight = model.get_parameter(name)
        assert int(rows.sum()) == (0 if name == "fc.weight" else weight.shape[0] // 2)
        assert torch.equal((weight == 0).flatten(1).all(1), rows)
    rows = killed["layer2.0.conv1.weight"]
    assert torch.equal(model.layer2[0].bn1.weight == 0, rows)
    assert bool((model.layer2[0].bn1.bias[rows] != 0).all())
    assert torch.equal(killed["layer2.0.conv2.weight"], killed["layer2.0.downsample.0.weight"])


def test_activations_keep_their_size_through_many_dead_layers(exam):
    damage = exam("exam_damage")
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(40)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        damage.randomise_(model, generator)
        for layer in layers:
            layer[0].weight[::2] = 0
            layer[1].weight[::2] = 0
        damage.calibrate_(model, torch.randn(2, 3, 16, 16, generator=generator), generator)
        y = model(torch.randn(2, 3, 16, 16, generator=generator))
    assert 0.1 < float(y[:, 1::2].square().mean().sqrt()) < 10
    assert float((y[0] - y[1]).abs().max()) > 0.1
    assert all(bool((layer[0].weight[::2] == 0).all()) for layer in layers)


def test_groups_come_to_equal_counts_where_partitions_share_classes(exam):
    balance_ = exam("exam_damage").balance_
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(48)
    partitions = (classes.reshape(4, 12), classes.reshape(6, 8), classes.reshape(12, 4).t().contiguous())
    dead = torch.zeros(48, dtype=torch.bool)
    dead[torch.randperm(48, generator=generator)[:24]] = True
    balance_(dead, partitions, torch.ones(48, dtype=torch.bool), generator)
    for partition in partitions:
        assert len(set(dead[partition].sum(1).tolist())) == 1


def test_a_group_of_pinned_channels_brings_the_others_down_to_it(exam):
    balance_ = exam("exam_damage").balance_
    dead = torch.tensor([False] * 4 + [True, False, True, True])
    free = torch.tensor([False] * 4 + [True] * 4)  # nothing of the first group may die
    balance_(dead, (torch.arange(8).reshape(2, 4),), free, torch.Generator().manual_seed(0))
    assert not bool(dead.any())


# --- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "plain", "exact"),
    [
        ("layer_norm: a statistic over channels (at encoder.ln)", "layer_norm: a statistic over channels", True),
        ("softmax: a statistic over channels (at gate)", "softmax: a statistic over channels", True),
        ("mean over channels (at stages.0.blocks.0.mlp.grn)", "mean over channels", True),
        ("linalg_vector_norm over channels (at a)", "linalg_vector_norm over channels", True),  # of biases
        ("sum over channels (at a)", "sum over channels", False),  # of what is 0 nothing is missing
        ("conv1d slides over channels, each result reads neighbours (at a.se)", None, True),
        ("conv2d reads channels that vary over space (at a)", None, False),
        ("matmul: a product of two activations, as in attention (at blocks.0.attn)", None, False),
        ("matmul has no rule (at blocks.0.attn)", "matmul has no rule", False),
        ("chunk has no rule (at a); layer_norm: a statistic over channels (at b)", None, True),
        ("a.b.gamma belongs to a LayerScale", "... belongs to a LayerScale", False),
        ("forward splits its channels, or holds their number as a literal", None, False),
        (
            "the groups of a.conv2 must keep equally many channels",
            "the groups of ... must keep equally many channels",
            True,
        ),
    ],
)
def test_reasons_are_excuses_only_where_exactness_asks_for_them(exam, reason, plain, exact):
    rows = exam("exam_rows")
    found = rows.without_places(reason)
    assert plain is None or found == plain
    assert rows.is_exact(found) is exact


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_keeps_rows_and_writes_the_document(exam, tmp_path, capsys):
    document = tmp_path / "exam.md"
    command = ["--suite", "torchvision", "--models", "squeezenet1_1", "--no-onnx", "--case", "a"]
    command += ["--out", str(tmp_path / "exam"), "--markdown", str(document), "--max-parameters"]
    main = exam("exam").main
    assert main([*command, "1000"]) == 0
    assert "(a) not run: 1,235,496 parameters" in capsys.readouterr().err
    assert "not run: squeezenet1_1" in document.read_text()
    assert main([*command, "1e9"]) == 0
    assert "(a) ok: " in capsys.readouterr().err
    assert main([*command, "1e9"]) == 0
    assert capsys.readouterr().err == ""  # the row is there
    assert main([*command, "1e9", "--again", "--time-limit", "1"]) == 1
    assert "(a) time: longer than 1 s" in capsys.readouterr().err
    assert len((tmp_path / "exam" / "rows.jsonl").read_text().splitlines()) == 3
    assert "1 failed" in document.read_text()


def test_an_unknown_model_is_told(exam, tmp_path, capsys):
    assert exam("exam").main(["--suite", "torchvision", "--models", "resnet19", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "torchvision has no model resnet19" in told
    assert "resnet18" in told


def test_a_row_of_each_kind_has_its_line_in_the_document(exam):
    Row = exam("exam_rows").Row
    done = Row("timm", "net", "net", "a", shapes=[64, 97], module="class", dead=10, removed=6, carried=1)
    done.kept, done.missed = {"layer_norm: a statistic over channels": 1}, {"einsum has no rule": 2}
    done.params, done.macs = [2_000_000, 1_000_000], [4_000_000, 1_000_000]
    done.errors, done.rounding, done.seconds = {"float64": 1e-15, "float32": 2e-7}, 3e-7, {"graph": 0.5, "compact": 1.5}
    broken = Row("timm", "net", "net", "b", "crashed", "ValueError: no")
    text = exam("exam_tables").document([done, broken], "the command")
    cells = "ok | 10 | 6 | 1 | 1 | 2 | 75.0% | 2.00 → 1.00 M | 4 → 1 M | 1e-15 | 2e-07 | 3e-07 |  | 1.5 |"
    assert f"| net | 64, 97 | {cells}" in text
    assert "| einsum has no rule | 2 | net |" in text
    assert "- timm: 1 networks, 1 failed, 0 of them silently wrong." in text
    assert "removed in 0 of 1; lowest 75.0%" in text
