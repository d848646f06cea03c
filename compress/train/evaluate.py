"""How good a model is on a split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.data import Split
from compress.graph.aten.trace import evaluating
from compress.train.inputs import Inputs
from compress.train.world import World

EVALUATION_BATCH = 256
"""Images at a time: enough to keep a CPU's cores busy, small enough for 224x224 images on a small machine."""


@dataclass(frozen=True)
class Score:
    """A model's figures on a split.

    Attributes:
        loss: Mean cross-entropy, in nats.
        accuracy: Share of images that were classified rightly.
    """

    loss: float
    accuracy: float


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each module's own mode is restored afterwards."""
    with evaluating(model), torch.no_grad():
        yield


def evaluate(model: nn.Module, split: Split, inputs: Inputs, world: World | None = None) -> Score:
    """Judge ``model`` on all images of ``split``, in their order.

    Args:
        model: On the device of ``inputs``; its mode is restored.
        split: At least one image.
        inputs: Turns a split's images into what the model takes.
        world: The processes that do it together, each on its share of the images; by default this one alone.
    """
    world = world or World()
    loss = 0.0
    correct = 0
    with inference(model):
        own = torch.arange(len(split))[world.share(len(split))]
        batches = torch.split(own, EVALUATION_BATCH) if len(own) else ()
        for images, labels in inputs.plain_batches(split, batches):
            logits = model(images)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
    loss, right = world.sum_(torch.tensor([loss, correct], dtype=torch.float64)).tolist()
    return Score(loss / len(split), right / len(split))


def max_abs_difference(one: nn.Module, other: nn.Module, images: Tensor) -> tuple[float, float]:
    """Largest difference of two models' outputs on ``images``, and the largest output of the first."""
    with inference(one), inference(other):
        expected, got = one(images), other(images)
    return float((got - expected).abs().max()), float(expected.abs().max())
