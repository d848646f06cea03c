"""What a cut reports: channels that cannot leave, operations that had to change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import ModelError
from compress.graph.labels import Classes


@dataclass(frozen=True)
class Channels:
    """Classes of channels in a numbering of their own, since every trace has its own.

    Attributes:
        classes: int64, some classes.
        numbering: the classes that they are among.
    """

    classes: Tensor
    numbering: Classes

    def among(self, others: Classes) -> Tensor:
        """Bool ``[others]``: the classes of another trace of the network that own the same indices of parameters."""
        found = torch.zeros(others.count, dtype=torch.bool)
        for name, dims in self.numbering.parameters.items():
            for dim, along in dims.items():
                theirs = others.parameters.get(name, {}).get(dim)
                if theirs is not None:
                    found[theirs[torch.isin(along, self.classes)]] = True
        return found


class Blocked(ModelError):  # noqa: N818 - a refusal that the caller answers, no defect
    """Channels that cannot leave the graph: keep them, and cut again.

    Attributes:
        channels: the channels that must stay; never empty.
        reason: why, with the line of the user's code.
    """

    def __init__(self, channels: Channels, reason: str):
        super().__init__(reason)
        self.channels = channels
        self.reason = reason


@dataclass(frozen=True)
class Rewrite:
    """One operation that had to change, beyond parameters that became smaller.

    Attributes:
        line: where it stands in the user's code.
        what: what was done.
        channels: the removed channels that pass it.
    """

    line: str
    what: str
    channels: Channels

    def __str__(self) -> str:
        return f"{self.line}: {self.what}"
