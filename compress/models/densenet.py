"""DenseNet for small images (Huang et al. 2016, arXiv 1608.06993, section 3), growth rate 12.

A 3x3 stem of 24 channels, three dense blocks with a transition between two of them, BatchNorm and ReLU, average pool,
one linear layer; convolutions have no bias. Each layer of a block reads the concatenation of all that came before it
through a BatchNorm of its own and appends ``growth`` channels to it.

DenseNet-40 is the form that Liu et al. 2017, "Network slimming", prune: 12 layers of BN-ReLU-3x3 a block, transitions
that keep every channel; 1.059 M parameters and 282.9 M multiply-accumulates (32x32 colour, 10 classes). DenseNet-100
is the paper's DenseNet-BC: 16 layers a block, each with a 1x1 convolution to ``4 growth`` channels in front of the
3x3, and transitions that halve the channels; 0.769 M and 287.9 M.
"""

import torch
from torch import Tensor, nn

from compress.models.pooled import PooledNetwork

BLOCKS = 3
GROWTH = 12
STEM_CHANNELS = 2 * GROWTH
BOTTLENECK = 4
"""Channels between the 1x1 and the 3x3 convolution of a DenseNet-B layer, over the growth rate."""


class DenseLayer(nn.Module):
    """``cat(x, layer(x))``: ``[N, C, H, W]`` to ``[N, C + growth, H, W]``."""

    def __init__(self, in_channels: int, *, growth: int, bottleneck: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        if bottleneck:
            layers += _norm_relu(channels)
            layers.append(nn.Conv2d(channels, BOTTLENECK * growth, 1, bias=False))
            channels = BOTTLENECK * growth
        layers += _norm_relu(channels)
        layers.append(nn.Conv2d(channels, growth, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The input with the layer's channels behind it."""
        return torch.cat((x, self.layers(x)), 1)


class DenseNet(PooledNetwork):
    """Images ``[N, in_channels, H, W]``, H and W at least 4, to logits ``[N, num_classes]``.

    Args:
        layers_per_block: Dense layers in each of the three blocks.
        bottleneck: Whether a layer has a 1x1 convolution in front, and a transition halves the channels (DenseNet-BC).
        num_classes: Number of logits.
        in_channels: Channels of the images.
    """

    def __init__(self, layers_per_block: int, *, bottleneck: bool, num_classes: int, in_channels: int) -> None:
        channels = STEM_CHANNELS
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        for block in range(BLOCKS):
            if block > 0:
                reduced = channels // 2 if bottleneck else channels
                layers += [*_norm_relu(channels), nn.Conv2d(channels, reduced, 1, bias=False), nn.AvgPool2d(2)]
                channels = reduced
            for _ in range(layers_per_block):
                layers.append(DenseLayer(channels, growth=GROWTH, bottleneck=bottleneck))
                channels += GROWTH
        super().__init__(nn.Sequential(*layers, *_norm_relu(channels)), channels, num_classes=num_classes)


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def densenet40(*, num_classes: int, in_channels: int, image_size: int) -> DenseNet:  # noqa: ARG001 - fits any size
    """DenseNet-40 (k = 12): 1,059,298 parameters for 10 classes."""
    return DenseNet(12, bottleneck=False, num_classes=num_classes, in_channels=in_channels)


def densenet100(*, num_classes: int, in_channels: int, image_size: int) -> DenseNet:  # noqa: ARG001 - fits any size
    """DenseNet-BC-100 (k = 12): 769,162 parameters for 10 classes."""
    return DenseNet(16, bottleneck=True, num_classes=num_classes, in_channels=in_channels)
