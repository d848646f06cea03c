"""``timm:NAME``: any image model of timm (PyTorch Image Models), untrained. timm is not installed with this package."""

import difflib
import warnings
from typing import Any

from torch import nn

from compress.errors import ModelError

NEAR_NAMES = 5
"""Suggestions for an unknown name: timm has more than a thousand."""


def build_timm(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build timm's model ``name`` (without the prefix) with random weights; nothing is downloaded.

    A network whose layers are made for one image size (most transformers) is made for ``image_size``.

    Raises:
        ModelError: timm is not installed, has no such model, or refuses to build it so.
    """
    timm = _timm()
    architecture, dot, tag = name.partition(".")
    if dot and timm.is_model(architecture):
        raise ModelError(
            f"timm:{name}: {tag} names trained weights, which are not fetched; build timm:{architecture}, and give a "
            "file of weights with --weights FILE"
        )
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=NEAR_NAMES, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ModelError(f"timm:{name}: timm {timm.__version__} has no model of that name; {hint}")
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    usual: Any = timm.get_pretrained_cfg(name)
    if usual is not None and usual.fixed_input_size:
        arguments["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # whatever the family's constructor checks, by assertions too
        size = f"{in_channels}x{image_size}x{image_size}"
        raise ModelError(f"timm:{name}: cannot be built for {size} images: {type(error).__name__}: {error}") from error
    return model


def _timm() -> Any:
    from compress.torchvision_compat import torchvision  # noqa: F401 - timm imports torchvision as well

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of modules that timm still has under their old names
            import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModelError("timm:NAME needs the package timm, which is not installed: pip install timm") from error
    return timm
