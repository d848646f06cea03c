"""How a training step computes the network's outputs: layout in memory, precision, compilation.

What is computed stays the same up to rounding. Weights, their gradients, the optimizer's state and the penalty's step
are float32 in the layout they always have; so exact zeros, surgery and checkpoints know nothing of this. Validation and
everything behind training run in plain float32, as the network is shipped.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ConfigError
from compress.train.config import RunSection

CPU_FLAGS = Path("/proc/cpuinfo")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

MOST_WEIGHTS = 5_000_000
"""Of convolutions in all, for channels-last images to gain: measured between 2.2 (gains) and 9.2 million (does not)."""


class Execution:
    """Calls a network.

    Args:
        channels_last: Images are laid out pixel by pixel, and with them all that convolutions make of them.
        precision: bfloat16 for the operations that autocast holds safe in it; outputs are float32 all the same.
        compiled: Through ``torch.compile``; the first call of each shape takes a minute.
    """

    def __init__(
        self, *, channels_last: bool = False, precision: torch.dtype = torch.float32, compiled: bool = False
    ) -> None:
        self.channels_last = channels_last
        self.precision = precision
        self.compiled = compiled
        self._wrapped: tuple[nn.Module, Callable[..., Any]] | None = None

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, C, H, W]``."""
        call = self._compiled(network) if self.compiled else network
        images = channels_last(images) if self.channels_last else images
        if self.precision == torch.float32:
            logits: Tensor = call(images)
            return logits
        with torch.autocast(images.device.type, self.precision):
            logits = call(images)
        return logits.float()

    def _compiled(self, network: nn.Module) -> Callable[..., Any]:
        if self._wrapped is None or self._wrapped[0] is not network:
            self._wrapped = (network, torch.compile(network))
        return self._wrapped[1]


def channels_last(images: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` with the channels of a pixel side by side in memory.

    The strides say so for one channel too, where ``memory_format`` leaves them as they are and convolutions would take
    them for the other layout.
    """
    _, channels, height, width = images.shape
    laid_out = images.contiguous(memory_format=torch.channels_last)
    return laid_out.as_strided(images.shape, (channels * height * width, 1, channels * width, channels))


def execution_of(run: RunSection, model: nn.Module, device: torch.device) -> Execution:
    """The execution that a recipe asks for.

    Raises:
        ConfigError: This machine cannot compute so, or not faster.
    """
    if run.precision == "bfloat16":
        _check_bfloat16(device)
    if run.compile:
        _check_compiler(device)
    chosen = gains_from_channels_last(model, device) if run.channels_last == "auto" else run.channels_last
    return Execution(channels_last=chosen, precision=PRECISIONS[run.precision], compiled=run.compile)


def gains_from_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether a network trains faster so, by what ``experiments/throughput.py layouts`` measures.

    On x86 every network of ``compress.models`` does, by 1.1 to 1.5 times, but for the VGGs, whose many weights are
    brought into another order in each step, and for those without a convolution. On a GPU it was not measured.
    """
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))
    return device.type == "cpu" and 0 < weights < MOST_WEIGHTS


def _check_bfloat16(device: torch.device) -> None:
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ConfigError("run.precision: this GPU computes no bfloat16; use float32")
    elif not _cpu_has_bfloat16():
        raise ConfigError(
            "run.precision: this CPU has no instructions for bfloat16 (avx512_bf16, amx_bf16, bf16 on ARM): it would "
            "train slower than in float32, and less exactly; use float32"
        )


def _cpu_has_bfloat16() -> bool:
    try:
        words = CPU_FLAGS.read_text().split()
    except OSError:
        return False
    return any(word.endswith("bf16") for word in words)


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ConfigError("run.compile: torch.compile needs triton for a GPU: pip install triton, or leave it out")
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"run.compile: torch.compile needs a C++ compiler, and there is no {compiler}; install it, name another "
            "one in the environment variable CXX, or leave run.compile out"
        )
