import re

import pytest
import torch
from torch import nn

from compress.errors import ModelError
from compress.graph import count_macs
from compress.models import MODELS, build

# Parameters and multiply-accumulates for 10 classes: LeNets for 28x28 grey images, the others for 32x32 colour ones.
FIGURES = {
    "lenet300-100": (266_610, 266_200),
    "lenet5": (431_080, 2_293_000),
    "vgg11": (9_228_362, 152_769_536),
    "vgg13": (9_413_066, 228_267_008),
    "vgg16": (14_724_042, 313_201_664),
    "vgg19": (20_035_018, 398_136_320),
    "resnet20": (272_474, 40_813_184),
    "resnet32": (466_906, 69_124_736),
    "resnet56": (855_770, 125_747_840),
    "resnet110": (1_730_714, 253_149_824),
    "resnet164": (1_703_258, 247_646_720),
    "densenet40": (1_059_298, 282_917_328),
    "densenet100": (769_162, 287_929_692),
    "mobilenetv1-0.25": (215_642, 834_688),
    "mobilenetv2": (2_236_682, 87_976_448),
}

# What is printed of them, in millions: Liu et al. 2017 and code that follows it (None: not given for this form).
PUBLISHED = {
    "lenet5": ("0.431", "2.293"),
    "vgg16": ("14.724", "313.2"),
    "vgg19": ("20.035", "398.1"),
    "densenet40": ("1.059", "282.9"),
    "resnet164": ("1.703", "247.6"),
    "densenet100": ("0.8", None),  # Huang et al. 2016, table 2
}
OPTION_A = {"resnet20": 269_722, "resnet32": 464_154, "resnet56": 853_018, "resnet110": 1_727_962}
"""Parameters of the same ResNets with shortcuts that have none (He et al. 2015, table 6: 0.27, 0.46, 0.85, 1.7 M)."""


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def figures(name: str, channels: int, size: int, classes: int) -> tuple[int, int]:
    model = build(name, num_classes=classes, in_channels=channels, image_size=size).eval()
    return count_parameters(model), count_macs(model, (torch.zeros(1, channels, size, size),))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet110")) for name in MODELS],  # resnet56's class
)
def test_has_these_parameters_and_multiply_accumulates(name):
    image = (1, 28) if name.startswith("lenet") else (3, 32)
    assert figures(name, *image, 10) == FIGURES[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_agrees_with_the_published_figures(name):
    for count, printed in zip(FIGURES[name], PUBLISHED[name], strict=True):
        if printed is not None:
            digits = len(printed.partition(".")[2])
            assert f"{count / 1e6:.{digits}f}" == printed


@pytest.mark.parametrize("name", OPTION_A)
def test_residual_networks_have_the_projections_beyond_the_papers_count(name):
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert FIGURES[name][0] == OPTION_A[name] + projections


def test_mobilenets_have_the_counts_of_the_libraries_they_were_published_with():
    from compress.torchvision_compat import torchvision

    model = torchvision.models.mobilenet_v2(weights=None, num_classes=10)
    assert FIGURES["mobilenetv2"][0] == count_parameters(model)
    # Keras: 470,072 trainable parameters; Howard et al. 2017, table 6: 41 M multiply-accumulates.
    assert figures("mobilenetv1-0.25", 3, 224, 1000) == (470_072, 41_030_272)
    # MLPerf Tiny: 221,794 parameters, there with 2,736 biases and twice as many running statistics.
    assert figures("mobilenetv1-0.25", 3, 96, 2) == (221_794 - 3 * 2_736, 7_489_664)


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
    assert bool(norms) == (not name.startswith("lenet"))


def test_is_a_function_of_torchs_seed():
    torch.manual_seed(3)
    first = build("resnet20", num_classes=10).state_dict()
    torch.manual_seed(3)
    second = build("resnet20", num_classes=10).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    # The trial image leaves no trace in the running statistics.
    assert first["bn1.num_batches_tracked"] == 0
    assert first["bn1.running_mean"].abs().max() == 0


@pytest.mark.parametrize("name", ["lenet5", "vgg11", "vgg13", "vgg16", "vgg19"])
def test_refuses_images_that_pooling_uses_up(name):
    with pytest.raises(ModelError, match=f"{name}: image_size is 15, must be at least 16"):
        build(name, num_classes=10, image_size=15)


@pytest.mark.parametrize("argument", ["num_classes", "in_channels", "image_size"])
def test_refuses_sizes_below_one(argument):
    with pytest.raises(ModelError, match=f"resnet20: {argument} is 0, must be at least 1"):
        build("resnet20", **{"num_classes": 10, argument: 0})


def test_unknown_name_lists_what_there_is():
    known = ", ".join(FIGURES)
    hint = "no model is called 'resnet57' (did you mean resnet56?)"
    message = f"{hint}; known: {known}, torchvision:NAME, timm:NAME, FILE.py"
    with pytest.raises(ModelError, match=re.escape(message)):
        build("resnet57", num_classes=10)
