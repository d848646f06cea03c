"""VGG-16 with a quarter of its widths, for measurements that train many networks."""

from torch import nn

from compress.models.pooled import PooledNetwork, unit
from compress.models.vgg import STAGES

SHARE = 4


def vgg16(*, num_classes: int, in_channels: int, image_size: int) -> PooledNetwork:
    """Images ``[N, in_channels, H, W]``, H and W at least 16, to logits ``[N, num_classes]``: 0.923 M parameters."""
    del image_size  # any
    layers: list[nn.Module] = []
    channels = in_channels
    for stage, widths in enumerate(STAGES[16]):
        if stage > 0:
            layers.append(nn.MaxPool2d(2))
        for width in widths:
            layers += unit(nn.Conv2d(channels, width // SHARE, 3, padding=1, bias=False))
            channels = width // SHARE
    return PooledNetwork(nn.Sequential(*layers), channels, num_classes=num_classes)
