"""ResNet with pre-activation bottlenecks for small images (He et al. 2016, arXiv 1603.05027, figure 4e and section 5).

A 3x3 stem of 16 channels, three stages of ``n`` bottlenecks (depth ``9 n + 2``) of widths 16, 32, 64 with four times as
many channels between them, BatchNorm and ReLU, average pool, one linear layer. Convolutions have no bias. The first
bottleneck of a stage has a 1x1 convolution as its shortcut, without BatchNorm and on the input as it is: the form that
Liu et al. 2017, "Network slimming", prune. ResNet-164: 1.703 M parameters, 247.6 M multiply-accumulates (32x32 colour,
10 classes).
"""

from torch import Tensor, nn

from compress.models.initialise import initialise_

STEM_CHANNELS = 16
STAGE_WIDTHS = (16, 32, 64)
EXPANSION = 4


class PreActBottleneck(nn.Module):
    """``shortcut(x) + conv(relu(bn(conv(relu(bn(conv(relu(bn(x)))))))))``.

    ``[N, C, H, W]`` to ``[N, 4 width, H/stride, W/stride]``; the 3x3 convolution in the middle has the stride.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, ``[N, 4 width, H/stride, W/stride]``."""
        residual = self.conv1(self.relu1(self.bn1(x)))
        residual = self.conv2(self.relu2(self.bn2(residual)))
        residual = self.conv3(self.relu3(self.bn3(residual)))
        out: Tensor = residual + self.shortcut(x)
        return out


class PreActResNet(nn.Module):
    """Images ``[N, in_channels, H, W]`` of any size to logits ``[N, num_classes]``."""

    def __init__(self, blocks_per_stage: int, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = STEM_CHANNELS
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for stage, width in enumerate(STAGE_WIDTHS):
            blocks: list[nn.Module] = []
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(PreActBottleneck(channels, width, stride))
                channels = EXPANSION * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of the images ``x``."""
        x = self.relu(self.bn(self.stages(self.conv1(x))))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def resnet164(*, num_classes: int, in_channels: int, image_size: int) -> PreActResNet:  # noqa: ARG001 - fits any size
    """ResNet-164 with pre-activation bottlenecks: 1,703,258 parameters for 10 classes."""
    return PreActResNet(18, num_classes=num_classes, in_channels=in_channels)
