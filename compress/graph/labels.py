"""Labels: which channels are one and the same, whatever moves them through the network.

Every output channel of every layer gets a label of its own. Wherever two labels meet in one elementwise operation, the
channels behind them can only leave the network together; the pair is noted, and at the end the connected components of
all pairs are the *classes*: the coupled channel groups. Pairs are only appended during the walk and solved once.
Nothing here knows which graph format the labels flow through.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

NEUTRAL = -1
"""The label of padding and created tensors: it meets every other label without consequence."""


COUPLED = "belongs to channels of other layers that are not zero"
"""Why a zero channel stays that has no reason of its own."""


@dataclass
class LabelBook:
    """Hands out labels, collects the pairs that must stay together, and the reasons for which some must stay at all."""

    count: int = 0
    _pairs: list[Tensor] = field(default_factory=list)
    _pins: list[tuple[Tensor, str]] = field(default_factory=list)
    _ties: list[tuple[Tensor, str]] = field(default_factory=list)
    _parameters: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def fresh(self, n: int) -> Tensor:
        """``n`` new labels, int64 ``[n]``."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def parameter(self, name: str, dim: int, size: int) -> Tensor:
        """The labels of a parameter's indices along ``dim``, the same at every use: shared modules need no rule."""
        key = (name, dim)
        if key not in self._parameters:
            self._parameters[key] = self.fresh(size)
        return self._parameters[key]

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Note that the labels ``a`` and ``b`` (broadcast against each other) belong together."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        a, b = a.reshape(-1), b.reshape(-1)
        meet = (a >= 0) & (b >= 0) & (a != b)
        if bool(meet.any()):
            pairs = torch.stack((a[meet], b[meet]))
            self._pairs.append(_unique_pairs(pairs))

    def pin(self, labels: Tensor, reason: str) -> None:
        """Note that the channels behind ``labels`` must stay, and why."""
        present = torch.unique(labels[labels >= 0])
        if present.numel():
            self._pins.append((present, reason))

    def explain(self, labels: Tensor, reason: str) -> None:
        """Note why the channels behind ``labels`` belong together, for those that stay because others do."""
        present = torch.unique(labels[labels >= 0])
        if present.numel():
            self._ties.append((present, reason))

    def solve(self) -> Classes:
        """Connected components of all pairs."""
        pairs = torch.cat(self._pairs, dim=1).numpy() if self._pairs else np.empty((2, 0), dtype=np.int64)
        matrix = coo_array((np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(self.count,) * 2)
        count, of_label = connected_components(matrix, directed=False)
        classes = torch.from_numpy(of_label.astype(np.int64))
        reasons, ties = (_by_class(classes, noted) for noted in (self._pins, self._ties))
        parameters: dict[str, dict[int, Tensor]] = {}
        for (name, dim), labels in self._parameters.items():
            parameters.setdefault(name, {})[dim] = own = classes[labels]
            cls = int(own[0]) if own.numel() > 1 else -1
            if cls in ties and cls not in reasons and bool((own == cls).all()):  # all there is of a layer
                reasons[cls] = ties[cls]
        return Classes(int(count), classes, reasons, parameters, ties)


def collapse(labels: Tensor, dims: tuple[int, ...]) -> Tensor | None:
    """One label along each of ``dims``, of size 1 there; neutral entries give way. ``None`` where labels differ."""
    if not dims:
        return labels
    high = labels.amax(dims, keepdim=True)
    low = torch.where(labels < 0, high, labels).amin(dims, keepdim=True)
    return high if torch.equal(low, high) else None


@dataclass(frozen=True)
class Classes:
    """The solved labels.

    Attributes:
        count: how many classes there are.
        of_label: int64 ``[labels]``, the class of each label.
        reasons: for each class that must stay, why.
        parameters: for each parameter and dimension that labels reach, the class of each index.
        ties: for classes of which more than meets the eye belongs together, why.
    """

    count: int
    of_label: Tensor
    reasons: dict[int, list[str]]
    parameters: dict[str, dict[int, Tensor]]
    ties: dict[int, list[str]] = field(default_factory=dict)

    def why_together(self, cls: int) -> str:
        """Why a channel stays that is zero itself, but belongs to others that are not."""
        return "; ".join(self.reasons.get(cls) or self.ties.get(cls) or [COUPLED])

    def of(self, labels: Tensor) -> Tensor:
        """Classes of ``labels``; neutral stays neutral."""
        return torch.where(labels >= 0, self.of_label[labels.clamp_min(0)], labels)


def _by_class(classes: Tensor, noted: list[tuple[Tensor, str]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for labels, reason in noted:
        for cls in torch.unique(classes[labels]).tolist():
            if reason not in (known := found.setdefault(cls, [])):
                known.append(reason)
    return found


def _unique_pairs(pairs: Tensor) -> Tensor:
    """Distinct columns of int64 ``[2, n]``: as one 64-bit key, far faster than ``torch.unique(dim=1)``."""
    key = torch.unique((pairs.amin(0) << 32) | pairs.amax(0))
    return torch.stack((key >> 32, key & 0xFFFFFFFF))
