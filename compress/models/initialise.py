"""Initial weights of the networks in this package."""

from torch import nn


def initialise_(model: nn.Module) -> None:
    """Draw the convolutions' weights after He et al. 2015 (arXiv 1502.01852, eq. 10), in place.

    ``std = sqrt(2 / fan_in)``; biases start at 0. BatchNorm (scale 1, shift 0) and linear layers keep PyTorch's
    defaults.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
