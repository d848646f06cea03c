"""A user's model file: enough channels for a budget to be met closely, a residual addition and a depthwise layer."""

from torch import Tensor, nn
from torch.nn import functional as F


class WideNet(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, stride=2, groups=32)
        self.inner = nn.Conv2d(32, 40, 1)
        self.outer = nn.Conv2d(40, 32, 1)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.norm(self.stem(images)))))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return self.classifier(x.mean((2, 3)))


def make(num_classes: int, in_channels: int) -> nn.Module:
    return WideNet(num_classes, in_channels)
