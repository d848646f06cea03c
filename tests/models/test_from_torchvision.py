import pytest
import torch

from compress.errors import ModelError
from compress.models import build


@pytest.mark.parametrize(
    "name, image_size",
    [("resnet18", 32), ("mobilenet_v3_small", 32), ("googlenet", 64), ("inception_v3", 96), ("vit_b_32", 64)],
)
def test_builds_untrained_with_the_asked_classes(name, image_size):
    model = build(f"torchvision:{name}", num_classes=7, image_size=image_size)
    assert model.training
    # In training mode: the Inception networks must not return their auxiliary logits.
    assert model(torch.rand(2, 3, image_size, image_size)).shape == (2, 7)


def test_unknown_name_offers_near_ones():
    with pytest.raises(ModelError, match=r"torchvision:resnet19: .* did you mean .*resnet18"):
        build("torchvision:resnet19", num_classes=10)


def test_refuses_grey_images():
    with pytest.raises(ModelError, match="torchvision:resnet18: takes images of 3 channels, got 1"):
        build("torchvision:resnet18", num_classes=10, in_channels=1)


def test_refuses_a_size_that_the_builder_refuses():
    with pytest.raises(ModelError, match="torchvision:vit_b_32: cannot be built for 40x40 images"):
        build("torchvision:vit_b_32", num_classes=10, image_size=40)


def test_refuses_a_size_that_a_layer_refuses():
    with pytest.raises(ModelError, match="torchvision:squeezenet1_0: does not take 3x8x8 images: RuntimeError"):
        build("torchvision:squeezenet1_0", num_classes=10, image_size=8)
