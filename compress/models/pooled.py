"""What most networks for small images have in common: features, an average over the image, one linear layer."""

from torch import Tensor, nn

from compress.models.initialise import initialise_


class PooledNetwork(nn.Module):
    """Images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``; all weights are drawn anew.

    Args:
        features: Images to ``[N, channels, h, w]``.
        channels: Of the features.
        num_classes: Number of logits.
    """

    def __init__(self, features: nn.Sequential, channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of the images ``x``."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return logits


def unit(convolution: nn.Conv2d, activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    """A convolution, BatchNorm and an activation."""
    return [convolution, nn.BatchNorm2d(convolution.out_channels), activation()]
