"""MobileNetV2 for small images (Sandler et al. 2018, arXiv 1801.04381, table 2).

A 3x3 stem, seventeen inverted residuals (1x1 expansion, depthwise 3x3, 1x1 projection without activation), a 1x1
convolution to 1280 channels, average pool, one linear layer; each convolution has a BatchNorm and no bias. The widths
are the paper's. The stem and the second stage keep the image's size, where the paper halves it for 224x224 images:
three strides of 2 are left, and a 32x32 image ends as 4x4. 2.237 M parameters, 87.98 M multiply-accumulates
(32x32 colour, 10 classes).
"""

from torch import Tensor, nn

from compress.models.pooled import PooledNetwork, unit

STEM_CHANNELS = 32
LAST_CHANNELS = 1280
# (expansion, output channels, blocks, stride of the first block) of each stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """``[N, C, H, W]`` to ``[N, out_channels, H/stride, W/stride]``; the input is added where the shape is its own."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += unit(nn.Conv2d(in_channels, hidden, 1, bias=False), nn.ReLU6)
        layers += unit(nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False), nn.ReLU6)
        layers += [nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, ``[N, out_channels, H/stride, W/stride]``."""
        out: Tensor = self.layers(x)
        return x + out if self.adds else out


class MobileNetV2(PooledNetwork):
    """Images ``[N, in_channels, H, W]`` of any size to logits ``[N, num_classes]``."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int) -> None:  # noqa: ARG002 - fits any size
        channels = STEM_CHANNELS
        layers = unit(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.ReLU6)
        for expansion, width, blocks, first_stride in STAGES:
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                layers.append(InvertedResidual(channels, width, expansion=expansion, stride=stride))
                channels = width
        layers += unit(nn.Conv2d(channels, LAST_CHANNELS, 1, bias=False), nn.ReLU6)
        super().__init__(nn.Sequential(*layers), LAST_CHANNELS, num_classes=num_classes)
