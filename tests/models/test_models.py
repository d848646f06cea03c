import re

import pytest
import torch
from torch import nn

from compress.errors import ModelError
from compress.models import MODELS, build

# For 10 classes: VGG as published (14.724 M, 20.035 M), the others from the shapes of their layers.
PARAMETERS = {
    "lenet5": 431_080,
    "vgg11": 9_228_362,
    "vgg16": 14_724_042,
    "vgg19": 20_035_018,
    "resnet20": 272_474,
    "resnet56": 855_770,
}


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_has_the_published_number_of_parameters(name):
    image = {"in_channels": 1, "image_size": 28} if name == "lenet5" else {"in_channels": 3, "image_size": 32}
    assert count_parameters(build(name, num_classes=10, **image)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("in_channels, image_size", [(1, 16), (3, 40)])
def test_maps_images_to_logits_at_other_sizes(name, in_channels, image_size):
    model = build(name, num_classes=7, in_channels=in_channels, image_size=image_size)
    assert model.training
    assert model(torch.rand(2, in_channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_starts_with_he_weights_and_unit_scales(name):
    torch.manual_seed(0)
    model = build(name, num_classes=10)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        fan_in = convolution.weight[0].numel()
        # The standard error of a sample's deviation is std / sqrt(2 n); five of them.
        n = convolution.weight.numel()
        assert convolution.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=5 / (2 * n) ** 0.5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)
    assert bool(norms) == (name != "lenet5")


def test_is_a_function_of_torchs_seed():
    torch.manual_seed(3)
    first = build("resnet20", num_classes=10).state_dict()
    torch.manual_seed(3)
    second = build("resnet20", num_classes=10).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    # The trial image leaves no trace in the running statistics.
    assert first["bn1.num_batches_tracked"] == 0
    assert first["bn1.running_mean"].abs().max() == 0


@pytest.mark.parametrize("name", ["lenet5", "vgg11", "vgg16", "vgg19"])
def test_refuses_images_that_pooling_uses_up(name):
    with pytest.raises(ModelError, match=f"{name}: image_size is 15, must be at least 16"):
        build(name, num_classes=10, image_size=15)


@pytest.mark.parametrize("argument", ["num_classes", "in_channels", "image_size"])
def test_refuses_sizes_below_one(argument):
    with pytest.raises(ModelError, match=f"resnet20: {argument} is 0, must be at least 1"):
        build("resnet20", **{"num_classes": 10, argument: 0})


def test_unknown_name_lists_what_there_is():
    message = (
        "unknown model 'resnet21' (did you mean resnet20?); known: lenet5, vgg11, vgg16, vgg19, resnet20, resnet56, "
    )
    with pytest.raises(ModelError, match=re.escape(message + "torchvision:NAME, FILE.py:factory")):
        build("resnet21", num_classes=10)
