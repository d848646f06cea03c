"""ResNet for small images: basic blocks, widths 16, 32, 64 (He et al. 2015, arXiv 1512.03385, section 4.2).

A 3x3 stem of 16 channels, three stages of ``n`` basic blocks (depth ``6 n + 2``), average pool, one linear layer. Where
a stage halves the image and doubles the channels the shortcut is a 1x1 convolution with BatchNorm (option B of the
paper). The paper's small-image figures are for option A, which pads the channels with zeros: 2,752 parameters less.
"""

from torch import Tensor, nn

from compress.models.initialise import initialise_

STAGE_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """``relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``: ``[N, C, H, W]`` to ``[N, width, H/stride, W/stride]``."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            projection = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, ``[N, width, H/stride, W/stride]``."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(residual + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Images ``[N, in_channels, H, W]`` of any size to logits ``[N, num_classes]``."""

    def __init__(self, blocks_per_stage: int, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = STAGE_WIDTHS[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        stages: list[nn.Module] = []
        for stage, width in enumerate(STAGE_WIDTHS):
            blocks: list[nn.Module] = []
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width, stride))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of the images ``x``."""
        x = self.stages(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def resnet20(*, num_classes: int, in_channels: int, image_size: int) -> ResNet:  # noqa: ARG001 - fits any size
    """ResNet-20: 272,474 parameters for 10 classes."""
    return ResNet(3, num_classes=num_classes, in_channels=in_channels)


def resnet32(*, num_classes: int, in_channels: int, image_size: int) -> ResNet:  # noqa: ARG001 - fits any size
    """ResNet-32: 466,906 parameters for 10 classes."""
    return ResNet(5, num_classes=num_classes, in_channels=in_channels)


def resnet56(*, num_classes: int, in_channels: int, image_size: int) -> ResNet:  # noqa: ARG001 - fits any size
    """ResNet-56: 855,770 parameters for 10 classes."""
    return ResNet(9, num_classes=num_classes, in_channels=in_channels)


def resnet110(*, num_classes: int, in_channels: int, image_size: int) -> ResNet:  # noqa: ARG001 - fits any size
    """ResNet-110: 1,730,714 parameters for 10 classes."""
    return ResNet(18, num_classes=num_classes, in_channels=in_channels)
