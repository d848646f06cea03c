"""LeNet-300-100 and LeNet-5, the two networks of the pruning literature for 28x28 grey digits; no BatchNorm.

LeNet-300-100 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", section III.C.4): linear
layers of 300, 100 and ``num_classes``, with ReLU in place of the squashing functions, as in Han et al. 2015 (arXiv
1506.02626). 266,610 parameters and 266,200 multiply-accumulates for 10 classes.

LeNet-5, Caffe variant: conv5x5 20, pool, conv5x5 50, pool, 500, classes. Widths and layers are those of Caffe's
``examples/mnist/lenet.prototxt``; as in the code of that literature (Louizos et al. 2018, for one) a ReLU follows each
convolution, where Caffe's own file has one only after the hidden linear layer. 431,080 parameters and 2.293 M
multiply-accumulates.
"""

from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.initialise import initialise_

MIN_IMAGE_SIZE = 16  # two 5x5 convolutions, each followed by a halving, leave 1x1 of it


class LeNet300100(nn.Module):
    """Images ``[N, in_channels, image_size, image_size]`` to logits ``[N, num_classes]``."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten(1)
        self.fc1 = nn.Linear(in_channels * image_size**2, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of the images ``x``."""
        x = self.relu1(self.fc1(self.flatten(x)))
        logits: Tensor = self.fc3(self.relu2(self.fc2(x)))
        return logits


class LeNet5(nn.Module):
    """Images ``[N, in_channels, image_size, image_size]`` to logits ``[N, num_classes]``."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        if image_size < MIN_IMAGE_SIZE:
            raise ModelError(
                f"lenet5: image_size is {image_size}, must be at least {MIN_IMAGE_SIZE}; enlarge the images"
            )
        self.conv1 = nn.Conv2d(in_channels, 20, kernel_size=5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten(1)
        side = ((image_size - 4) // 2 - 4) // 2
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, num_classes)
        initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of the images ``x``."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(self.flatten(x)))
        logits: Tensor = self.fc2(x)
        return logits
