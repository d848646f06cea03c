import sys
from importlib.util import find_spec

import pytest
import torch

from compress.errors import ModelError
from compress.models import build

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="needs timm")


@pytest.mark.parametrize(
    "name, channels, size",
    [
        ("resnet10t", 3, 32),
        ("mobilenetv3_small_050", 1, 32),
        ("vit_tiny_patch16_224", 3, 48),  # patches for one size of image: made for 48x48
    ],
)
def test_builds_untrained_with_the_asked_classes(name, channels, size):
    model = build(f"timm:{name}", num_classes=7, in_channels=channels, image_size=size)
    assert model.training
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    "name, hint", [("resnet19", r"did you mean .*resnet18"), ("@@@", r"timm\.list_models\(\) lists them")]
)
def test_unknown_name_offers_near_ones(name, hint):
    with pytest.raises(ModelError, match=rf"timm:{name}: timm [\d.]+ has no model of that name; {hint}"):
        build(f"timm:{name}", num_classes=10)


def test_a_tag_of_trained_weights_is_refused():
    with pytest.raises(ModelError, match=r"lamb_in1k names trained weights, .* build timm:mobilenetv3_small_050, and"):
        build("timm:mobilenetv3_small_050.lamb_in1k", num_classes=10)


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("botnet26t_256", "cannot be built for 3x8x8 images"),
        ("inception_v3", "does not take 3x8x8 images"),
    ],
)
def test_refuses_a_size_that_the_network_refuses(name, refusal):
    with pytest.raises(ModelError, match=f"timm:{name}: {refusal}"):
        build(f"timm:{name}", num_classes=10, image_size=8)


def test_without_timm_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="is not installed: pip install timm"):
        build("timm:resnet18", num_classes=10)
