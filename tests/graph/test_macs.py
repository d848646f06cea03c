"""Multiply-accumulates against the literature's numbers and against closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.graph import count_macs
from compress.models import build


@pytest.mark.parametrize(
    ("name", "channels", "size", "millions"),
    [("lenet5", 1, 28, 2.293), ("vgg16", 3, 32, 313.2), ("vgg19", 3, 32, 398.1), ("resnet20", 3, 32, 40.8)],
)
def test_known_networks(name, channels, size, millions):
    model = build(name, num_classes=10, in_channels=channels, image_size=size)
    macs = count_macs(model, (torch.zeros(1, channels, size, size),))
    assert macs / 1e6 == pytest.approx(millions, abs=10 ** -(len(str(millions).partition(".")[2])))


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 9, 9), 8 * 5 * 5 * 3 * 9),
        (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 5, 5), 2 * 8 * 3 * 3 * 9),
        (nn.Conv1d(4, 6, 5), (1, 4, 12), 6 * 8 * 4 * 5),
        (nn.Linear(7, 3), (2, 5, 7), 2 * 5 * 7 * 3),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 3, 3), 3 * 3 * 4 * 6 * 4),
        (nn.ReLU(), (1, 4, 3, 3), 0),
    ],
    ids=str,
)
def test_closed_forms(layer, shape, macs):
    assert count_macs(nn.Sequential(layer), (torch.zeros(shape),)) == macs


def test_matrix_products(net):
    model = net(lambda _, x, y: F.relu(x) @ y)
    assert count_macs(model, (torch.zeros(2, 3, 4), torch.zeros(2, 4, 5))) == 2 * 3 * 4 * 5
