"""Models by name: this package's networks for small images, torchvision's, and the user's own.

A new network is one file here and one line in ``MODELS``.
"""

import copy
import difflib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.from_file import build_from_file
from compress.models.from_torchvision import build_torchvision
from compress.models.lenet import LeNet5
from compress.models.resnet import resnet20, resnet56
from compress.models.vgg import vgg11, vgg16, vgg19

__all__ = ["MODELS", "Builder", "build"]

TORCHVISION_PREFIX = "torchvision:"


class Builder(Protocol):
    """Makes an untrained network for square images."""

    def __call__(self, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        """See ``build``."""
        ...


MODELS: dict[str, Builder] = {
    "lenet5": LeNet5,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet20": resnet20,
    "resnet56": resnet56,
}


def build(name: str, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Build an untrained network that maps images ``[N, in_channels, image_size, image_size]`` to ``[N, num_classes]``.

    Weights are drawn from torch's global generator: seed it for a repeatable network. The network is tried on a black
    image in eval mode, and a copy of it on two in training mode, so that one that does not fit is refused here.

    Args:
        name: A key of ``MODELS``, ``torchvision:NAME``, or ``path/file.py:factory`` (see ``from_file``).
        num_classes: Number of logits.
        in_channels: Channels of the images, 1 for grey and 3 for colour.
        image_size: Height and width of the images, in pixels.

    Raises:
        ModelError: The name is unknown, the network cannot be built, or it does not fit such images.
    """
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", image_size)):
        if value < 1:
            raise ModelError(f"{name}: {what} is {value}, must be at least 1")
    model = _builder(name)(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    _check_fits(name, model, (in_channels, image_size, image_size), num_classes)
    return model


def _builder(name: str) -> Callable[..., nn.Module]:
    if name in MODELS:
        return MODELS[name]
    if name.startswith(TORCHVISION_PREFIX):
        return lambda **sizes: build_torchvision(name.removeprefix(TORCHVISION_PREFIX), **sizes)
    if ".py:" in name or name.endswith(".py"):
        return lambda **sizes: build_from_file(name, **sizes)
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ModelError(f"unknown model {name!r}{hint}; known: {', '.join(MODELS)}, torchvision:NAME, FILE.py:factory")


def _check_fits(name: str, model: nn.Module, image_shape: tuple[int, int, int], num_classes: int) -> None:
    training = [module for module in model.modules() if module.training]
    _try(name, model.eval(), (1, *image_shape), num_classes)  # the model itself, so that lazy layers take their shapes
    for module in training:
        module.training = True
    with torch.random.fork_rng(devices=[]):  # dropout draws numbers, and BatchNorm moves its statistics
        _try(name, copy.deepcopy(model), (2, *image_shape), num_classes, " in training mode")


def _try(name: str, model: nn.Module, shape: tuple[int, ...], num_classes: int, mode: str = "") -> None:
    images = "x".join(map(str, shape[1:]))
    try:
        with torch.no_grad():
            logits = model(torch.zeros(shape))
    except Exception as error:  # any layer may refuse, and user code may raise anything
        raise ModelError(f"{name}: does not take {images} images{mode}: {type(error).__name__}: {error}") from error
    expected = (shape[0], num_classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        count = "one" if shape[0] == 1 else str(shape[0])
        raise ModelError(
            f"{name}: returns {got} for {count} {images} images{mode}, expected logits of shape {list(expected)}"
        )
