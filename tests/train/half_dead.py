"""A user's model file: networks in which every second channel is zero, and stays so: no gradient reaches it;
and one in which nothing is zero at first, ``stack``.
"""

from torch import nn

from compress.models.lenet import LeNet5
from compress.models.pooled import PooledNetwork, unit
from compress.models.resnet import ResNet

LAYERS = (nn.Conv2d, nn.BatchNorm2d)


def half_dead(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, LAYERS):
            for parameter in module.parameters():
                parameter.detach()[::2] = 0.0
    return model


def lenet5(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return half_dead(LeNet5(num_classes=num_classes, in_channels=in_channels, image_size=image_size))


def resnet8(num_classes: int, in_channels: int) -> nn.Module:
    """The smallest of its family, with a residual stream in each of three widths."""
    return half_dead(ResNet(1, num_classes=num_classes, in_channels=in_channels))


def stack(num_classes: int, in_channels: int) -> nn.Module:
    """Three convolutions with BatchNorm, as in a VGG."""
    units = [unit(nn.Conv2d(*widths, 3, padding=1, bias=False)) for widths in ((in_channels, 16), (16, 24), (24, 32))]
    return PooledNetwork(nn.Sequential(*(layer for one in units for layer in one)), 32, num_classes=num_classes)
