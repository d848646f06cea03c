"""Half of the free channels dead, in the networks that this package trains: exact, and nothing dead is left behind."""

import functools

import pytest
import torch

from compress.models import build
from compress.models.densenet import DenseNet
from compress.models.resnet_preact import PreActResNet
from compress.surgery import compact, load, save_weights

SIZED = {"lenet300-100": (1, 28), "lenet5": (1, 28)}  # a linear layer reads the image's positions
NETWORKS = (*SIZED, "vgg16", "resnet20", "mobilenetv1-0.25")
SHORT = {
    "resnet20, pre-activation": lambda: PreActResNet(2, num_classes=10, in_channels=3),
    "densenet10": lambda: DenseNet(2, bottleneck=False, num_classes=10, in_channels=3),
    "densenet-bc": lambda: DenseNet(2, bottleneck=True, num_classes=10, in_channels=3),
}
"""Pre-activation networks of the classes of resnet164, densenet40 and densenet100, with fewer layers."""

PRE_ACTIVATION = ("resnet164", "densenet40", "densenet100")
LONG = ("mobilenetv2", "vgg19", "resnet110", *PRE_ACTIVATION)


def made(name):
    if name in SHORT:
        return SHORT[name]()
    channels, size = SIZED.get(name, (3, 32))
    return build(name, num_classes=10, in_channels=channels, image_size=size)


def network(name, randomise_):
    torch.manual_seed(0)
    channels, size = SIZED.get(name, (3, 32))
    return randomise_(made(name)).float(), torch.randn(1, channels, size, size)


@pytest.mark.parametrize("name", [*NETWORKS, *SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_zero_channels_all_leave(name, randomise_, kill_free_):
    model, x = network(name, randomise_)
    killed = kill_free_(model, x)
    result = compact(model, (x,))
    report = result.report
    assert report.kept == {}
    assert sum(int(rows.sum()) for rows in killed.values()) > 100
    for weight, rows in killed.items():
        width = report.layers[weight.removesuffix(".weight")]
        assert (width.before, width.dead, width.after) == (rows.numel(), int(rows.sum()), int((~rows).sum()))
        assert result.model.get_parameter(weight).shape[0] == width.after
    assert report.max_exact_error <= 1e-10
    assert report.max_relative_error <= 1e-5
    sizes = {tuple(shape[2:] for shape in agreement.input_shapes) for agreement in report.agreements}
    assert len(sizes) == (1 if name in SIZED else 3)
    assert report.params_before == sum(p.numel() for p in model.parameters())
    assert report.params_after == sum(p.numel() for p in result.model.parameters()) < report.params_before / 2
    assert report.macs_after < report.macs_before / 2


@pytest.fixture(scope="module")
def shifted(randomise_, kill_free_):
    """Name -> (network, input, what was killed with shifts, what compact made of it), made once for both tests."""

    @functools.cache
    def compacted(name):
        model, x = network(name, randomise_)
        killed = kill_free_(model, x, shift=0.2)
        return model, x, killed, compact(model, (x,))

    return compacted


@pytest.mark.parametrize("name", ["lenet5", "vgg16", "resnet20"])
def test_shifted_channels_leave_but_for_one_carrier_each(name, shifted):
    model, _, killed, result = shifted(name)
    report = result.report
    left = sum(report.layers[w.removesuffix(".weight")].after - int((~rows).sum()) for w, rows in killed.items())
    padded = sum(getattr(m, "padding", 0) == (1, 1) for m in model.modules())
    assert 0 <= left <= padded * (1 if name != "resnet20" else 10)  # a class of a ResNet's stream spans ten layers
    assert all("carried for the padded" in why for why in report.kept.values())
    assert report.max_exact_error <= 1e-10
    assert report.max_relative_error <= 1e-5


@pytest.mark.parametrize("name", ["lenet5", "vgg16", "resnet20", *SHORT])
def test_a_plan_and_weights_rebuild_the_compact_network(name, shifted, tmp_path):
    model, x, _, result = shifted(name)
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "weights.safetensors")
    rebuilt = load(tmp_path / "plan.json", tmp_path / "weights.safetensors", base=lambda: made(name))
    assert type(rebuilt) is type(model)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), result.model.eval()(x))


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        *((name, 0.2) for name in SHORT),
        ("resnet20, pre-activation", 0.0),
        *(pytest.param(name, 0.0, marks=pytest.mark.slow) for name in ("densenet10", "densenet-bc")),
        *(pytest.param(name, shift, marks=pytest.mark.slow) for name in PRE_ACTIVATION for shift in (0.0, 0.2)),
    ],
)
def test_pre_activation_networks_select_what_each_norm_reads(name, shift, randomise_):
    """Half of the scales of every BatchNorm are zero, each norm's own half, as network slimming leaves them."""
    model, x = network(name, randomise_)
    norms = {path: module for path, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    generator = torch.Generator().manual_seed(1)
    dead = {path: torch.rand(norm.num_features, generator=generator) < 0.5 for path, norm in norms.items()}
    with torch.no_grad():
        for path, norm in norms.items():
            norm.weight[dead[path]] = 0
            norm.bias[dead[path]] = shift
    result = compact(model, (x,), select="always")
    report = result.report
    assert report.form == "class"
    assert report.max_exact_error <= 1e-10
    assert report.max_relative_error <= 1e-5
    for path, (reads, stream) in report.selections.items():
        # Where the channel's constant has to be carried across a zero-padded border, one silent channel stays.
        assert 0 <= reads - int((~dead[path]).sum()) <= (shift != 0)
        assert reads < stream <= norms[path].num_features
    inside = ("bn2", "bn3", "layers.3")  # of a bottleneck: nobody else reads what they read
    assert report.selections.keys() == {path for path in norms if not path.endswith(inside)}
    never = compact(model, (x,), select="never").report
    assert report.params_after < never.params_after
    assert report.macs_after < never.macs_after
