"""Half of the free channels dead, in the networks that this package trains: exact, and nothing dead is left behind."""

import pytest
import torch

from compress.models import build
from compress.surgery import compact

NETWORKS = {"lenet5": (1, 28), "vgg16": (3, 32), "resnet20": (3, 32)}


def network(name, randomise_):
    channels, size = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise_(build(name, num_classes=10, in_channels=channels, image_size=size))
    return model.float(), torch.randn(1, channels, size, size)


@pytest.mark.parametrize("name", NETWORKS)
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
    assert len(sizes) == (1 if name == "lenet5" else 2)  # LeNet's linear layer takes one size
    assert report.params_before == sum(p.numel() for p in model.parameters())
    assert report.params_after == sum(p.numel() for p in result.model.parameters()) < report.params_before / 2
    assert report.macs_after < report.macs_before / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_shifted_channels_leave_but_for_one_carrier_each(name, randomise_, kill_free_):
    model, x = network(name, randomise_)
    killed = kill_free_(model, x, shift=0.2)
    report = compact(model, (x,)).report
    left = sum(report.layers[w.removesuffix(".weight")].after - int((~rows).sum()) for w, rows in killed.items())
    padded = sum(getattr(m, "padding", 0) == (1, 1) for m in model.modules())
    assert 0 <= left <= padded * (1 if name != "resnet20" else 10)  # a class of a ResNet's stream spans ten layers
    assert all("carried for the padded" in why for why in report.kept.values())
    assert report.max_exact_error <= 1e-10
    assert report.max_relative_error <= 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_and_weights_rebuild_the_compact_network(name, randomise_, kill_free_, tmp_path):
    from compress.surgery import load, save_weights

    model, x = network(name, randomise_)
    kill_free_(model, x, shift=0.2)
    result = compact(model, (x,))
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "weights.safetensors")
    channels, size = NETWORKS[name]
    rebuilt = load(
        tmp_path / "plan.json",
        tmp_path / "weights.safetensors",
        base=lambda: build(name, num_classes=10, in_channels=channels, image_size=size),
    )
    assert type(rebuilt) is type(model)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), result.model.eval()(x))
