"""VGG for small images (Simonyan and Zisserman 2014, in the form that Liu et al. 2017, "Network slimming", prune).

3x3 convolutions without bias, each with BatchNorm and ReLU; four max-pools; an average over what is left (2x2 at 32x32,
where it is the average pool of the published form) and one linear layer, so any image of 16x16 or more fits.
VGG-16: 14.724 M parameters, 313.2 M multiply-accumulates; VGG-19: 20.035 M and 398.1 M (32x32 colour, 10 classes).
"""

from torch import nn

from compress.errors import ModelError
from compress.models.pooled import PooledNetwork, unit

# Output channels of the convolutions of each stage; a max-pool stands between two stages.
STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    13: ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    16: ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
MIN_IMAGE_SIZE = 16  # four halvings leave 1x1 of it


class VGG(PooledNetwork):
    """Images ``[N, in_channels, H, W]``, H and W at least 16, to logits ``[N, num_classes]``."""

    def __init__(self, depth: int, *, num_classes: int, in_channels: int) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, widths in enumerate(STAGES[depth]):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                layers += unit(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                channels = width
        super().__init__(nn.Sequential(*layers), channels, num_classes=num_classes)


def vgg11(*, num_classes: int, in_channels: int, image_size: int) -> VGG:
    """VGG-11 with BatchNorm: 9.228 M parameters for 10 classes."""
    return _vgg(11, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def vgg13(*, num_classes: int, in_channels: int, image_size: int) -> VGG:
    """VGG-13 with BatchNorm: 9.413 M parameters for 10 classes."""
    return _vgg(13, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def vgg16(*, num_classes: int, in_channels: int, image_size: int) -> VGG:
    """VGG-16 with BatchNorm: 14.724 M parameters for 10 classes."""
    return _vgg(16, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def vgg19(*, num_classes: int, in_channels: int, image_size: int) -> VGG:
    """VGG-19 with BatchNorm: 20.035 M parameters for 10 classes."""
    return _vgg(19, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def _vgg(depth: int, *, num_classes: int, in_channels: int, image_size: int) -> VGG:
    if image_size < MIN_IMAGE_SIZE:
        raise ModelError(
            f"vgg{depth}: image_size is {image_size}, must be at least {MIN_IMAGE_SIZE}; enlarge the images"
        )
    return VGG(depth, num_classes=num_classes, in_channels=in_channels)
