"""Models by name: this package's networks for small images, torchvision's, timm's, and the user's own.

A new network is one file here and one line in ``MODELS``.
"""

import copy
import difflib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from compress.errors import ModelError, UnknownModelError
from compress.models.densenet import densenet40, densenet100
from compress.models.from_file import build_from_file
from compress.models.from_timm import build_timm
from compress.models.from_torchvision import build_torchvision
from compress.models.lenet import LeNet5, LeNet300100
from compress.models.mobilenetv1 import mobilenetv1_quarter
from compress.models.mobilenetv2 import MobileNetV2
from compress.models.resnet import resnet20, resnet32, resnet56, resnet110
from compress.models.resnet_preact import resnet164
from compress.models.vgg import vgg11, vgg13, vgg16, vgg19

__all__ = ["FORMS", "LIBRARIES", "MODELS", "Builder", "build"]


class Builder(Protocol):
    """Makes an untrained network for square images."""

    def __call__(self, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        """See ``build``."""
        ...


MODELS: dict[str, Builder] = {
    "lenet300-100": LeNet300100,
    "lenet5": LeNet5,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet164": resnet164,
    "densenet40": densenet40,
    "densenet100": densenet100,
    "mobilenetv1-0.25": mobilenetv1_quarter,
    "mobilenetv2": MobileNetV2,
}

LIBRARIES: dict[str, Callable[..., nn.Module]] = {"torchvision:": build_torchvision, "timm:": build_timm}
"""Start of a name -> what builds the model that the rest of the name means in that library."""

FORMS = (*(f"{library}NAME" for library in LIBRARIES), "FILE.py:factory")
"""How names are written that are no key of ``MODELS``."""


def build(name: str, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Build an untrained network that maps images ``[N, in_channels, image_size, image_size]`` to ``[N, num_classes]``.

    Weights are drawn from torch's global generator: seed it for a repeatable network. The network is tried on a black
    image in eval mode, and a copy of it on two in training mode, so that one that does not fit is refused here.

    Args:
        name: A key of ``MODELS``, ``torchvision:NAME``, ``timm:NAME``, or ``path/file.py:factory`` (see ``from_file``).
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
    library, colon, rest = name.partition(":")
    if library + colon in LIBRARIES:
        return partial(LIBRARIES[library + colon], rest)
    if ".py:" in name or name.endswith(".py"):
        return partial(build_from_file, name)
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UnknownModelError(f"no model is called {name!r}{hint}; known: {', '.join([*MODELS, *FORMS])}")


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
        count, images = ("one", f"{images} image") if shape[0] == 1 else (str(shape[0]), f"{images} images")
        raise ModelError(f"{name}: returns {got} for {count} {images}{mode}, expected logits of shape {list(expected)}")
