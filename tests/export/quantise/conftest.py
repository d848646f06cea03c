"""A small network whose layers are known, verified, with images and classes to judge it by."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from export import Graph, Interface, accuracy_of, graph_of


class Branches(nn.Module):
    """Convolutions, a sum, pooling, linear: [N, 3, 8, 8] -> [N, 10]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16 * 16, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        return self.last(nn.functional.max_pool2d(x, 2).flatten(1))


@dataclass(frozen=True)
class Known:
    """Attributes: graph; images [200, 3, 8, 8]; accuracy: share of images given the class that float32 gives."""

    graph: Graph
    images: np.ndarray
    labels: np.ndarray

    def accuracy(self, model):
        return accuracy_of(model, [(self.images, self.labels)])


@pytest.fixture(scope="session")
def known():
    images = np.random.default_rng(0).normal(size=(200, 3, 8, 8)).astype(np.float32)
    return of(Branches(), images)


@pytest.fixture(scope="session")
def known_as():
    return of


def of(network, images):
    real = [(torch.from_numpy(images[i : i + 1]),) for i in range(8)]
    graph = graph_of(network, (torch.zeros(1, *images.shape[1:]),), Interface(), extra_inputs=real)
    with torch.no_grad():
        labels = network.eval()(torch.from_numpy(images)).argmax(1).numpy()
    return Known(graph, images, labels)


@pytest.fixture(scope="session")
def branches():
    return Branches
