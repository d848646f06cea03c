"""From pixels to the network's input, as a part of the network: uint8 images in, scores out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.errors import ExportError

LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What becomes of an image: ``(pixels / 255 - mean) / std`` by channel.

    Attributes:
        mean: Of each channel, where 255 is 1.
        std: Likewise.
        layout: Of the images that come in: ``nchw``, or ``nhwc`` as cameras and decoders give them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "nchw"

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        if self.layout not in LAYOUTS:
            raise ExportError(f"layout is {self.layout!r}, expected {' or '.join(LAYOUTS)}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ExportError(f"mean and std must be given for the same channels, got {self.mean} and {self.std}")
        if not all(deviation > 0 for deviation in self.std):
            raise ExportError(f"every std must be above 0, got {self.std}")

    def arranged(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in the layout that the network takes."""
        return images if self.layout == "nchw" else images.permute(0, 2, 3, 1).contiguous()


class WithPreprocess(nn.Module):
    """A network that takes uint8 images.

    Args:
        network: Takes float32 [N, C, H, W].
        preprocess: What it was trained on.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.nhwc = network, preprocess.layout == "nhwc"
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocess.mean, preprocess.std))
        for name, values in (("scale", 1 / (255 * std)), ("shift", mean / std)):
            self.register_buffer(name, values.float()[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Scores of uint8 images, [N, C, H, W] or [N, H, W, C]."""
        pixels = images.permute(0, 3, 1, 2) if self.nhwc else images
        scores: Tensor = self.network(pixels.float() * self.scale - self.shift)
        return scores
