"""``torchvision:NAME``: any classification model of torchvision, untrained."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from compress.errors import ModelError

# What a family's builder needs beside num_classes, by the start of its name. The two Inception networks would otherwise
# return a tuple with auxiliary logits while training; the transformers fix their number of patches when they are built.
_EXTRA_ARGUMENTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "googlenet": lambda _: {"aux_logits": False, "init_weights": True},
    "inception_v3": lambda _: {"aux_logits": False, "init_weights": True},
    "vit_": lambda image_size: {"image_size": image_size},
    "maxvit_": lambda image_size: {"input_size": (image_size, image_size)},
}


def build_torchvision(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build torchvision's model ``name`` (without the prefix) with random weights.

    Raises:
        ModelError: The name is no classification model, the images are not of three channels, or torchvision refuses.
    """
    from compress.torchvision_compat import torchvision

    models: Any = torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise ModelError(f"torchvision:{name}: torchvision has no classification model of that name; {hint}")
    if in_channels != 3:
        raise ModelError(
            f"torchvision:{name}: takes images of 3 channels, got {in_channels}; "
            "use a model of this package (resnet20, ...) or write a factory, FILE.py:factory"
        )
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    for start, extra in _EXTRA_ARGUMENTS.items():
        if name.startswith(start):
            arguments |= extra(image_size)
    try:
        model: nn.Module = models.get_model(name, **arguments)
    except Exception as error:  # whatever the family's constructor checks, by assertions too
        raise ModelError(
            f"torchvision:{name}: cannot be built for {image_size}x{image_size} images: {error}"
        ) from error
    return model
