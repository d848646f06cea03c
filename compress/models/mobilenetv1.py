"""MobileNetV1 with a quarter of its channels (Howard et al. 2017, arXiv 1704.04861, table 1), for microcontrollers.

A 3x3 stem with stride 2, thirteen pairs of a depthwise 3x3 and a 1x1 convolution, each convolution without bias and
followed by BatchNorm and ReLU; average pool, one linear layer. Five strides of 2 divide the image's sides by 32. It is
the network of the benchmark "visual wake words" of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597), there for 96x96
colour images and 2 classes: 7.490 M multiply-accumulates.
"""

from torch import nn

from compress.models.pooled import PooledNetwork, unit

STEM_WIDTH = 32
# (output channels, stride of the depthwise convolution) of each pair, at width 1.
PAIRS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class MobileNetV1(PooledNetwork):
    """Images ``[N, in_channels, H, W]`` of any size to logits ``[N, num_classes]``.

    Args:
        width: Factor of every number of channels.
        num_classes: Number of logits.
        in_channels: Channels of the images.
    """

    def __init__(self, width: float, *, num_classes: int, in_channels: int) -> None:
        channels = int(STEM_WIDTH * width)
        layers = unit(nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False))
        for full_width, stride in PAIRS:
            out_channels = int(full_width * width)
            layers += unit(nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False))
            layers += unit(nn.Conv2d(channels, out_channels, 1, bias=False))
            channels = out_channels
        super().__init__(nn.Sequential(*layers), channels, num_classes=num_classes)


def mobilenetv1_quarter(*, num_classes: int, in_channels: int, image_size: int) -> MobileNetV1:  # noqa: ARG001
    """MobileNetV1 x0.25: 215,642 parameters for 10 classes; fits any size."""
    return MobileNetV1(0.25, num_classes=num_classes, in_channels=in_channels)
