"""A row of the surgery exam, and what its reasons mean; reading rows needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CASES = {
    "a": "by coupled group: filters and BatchNorm scales of half of the coupled groups are zero",
    "b": "layer by layer: half of the scales of every normalisation are zero, each layer for itself; filters, where a "
    "network has no normalisation",
}
"""How channels die."""

MIN_SHARE = 0.95
"""Goal: of what is provably removable in case (a), this share is removed."""

EXACT_REASONS = {
    "a statistic over channels, which a dead channel is part of": r": a statistic over channels$|"
    r"^(mean|amax|amin|max|min|var|std|var_mean|std_mean|logsumexp|linalg_vector_norm) over channels$",
    "a convolution that slides over channels, whose neighbours it reads": r"slides over channels",
    "input or output of the network": r"^(in|out)put of the network$",
    "part of an attention head of which other channels live": r"a whole attention head$",
    "balance of groups": r"must keep equally many",
}
"""Why a dead channel must stay in an exact network: name -> pattern in the report's reason. A norm reads dead channels
too: those of layers with a bias hold a constant that is not 0. Every other reason (an op without a rule, a forward that
splits, a cut that did not come out even) is a channel that was missed."""

CARRIED = "carried"
"""In the reason of a dead channel that stays to carry the constants of others."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        suite: and ``name``, ``family``: the network.
        case: of ``exam_damage.CASES``.
        status: ``ok``; ``wrong``: a difference that ``compact`` did not notice; ``refused``: no compact network, with a
            reason; ``crashed``; ``onnx``: the compact network cannot be exported, or differs there; ``insensitive``:
            the comparison shows nothing; ``time``, ``memory``: over the limit; ``not run``: too large.
        note: what happened, where the status is not ``ok``.
        shapes: input sizes of the comparison, pixels a side.
        module: whether the compact network is of the original ``class``, or a ``graph`` module.
        dead: output channels of layers (scales, in case b) that were zeroed.
        removed: how many of them are gone.
        carried: how many stay to carry the constants of others.
        kept: how many stay for a reason of exactness, by reason.
        missed: how many stay for another reason, by reason.
        missed_at: the same by place, where the reason names one.
        params: before and after; ``macs`` likewise, for one sample.
        errors: largest difference relative to the largest output, by precision.
        rounding: the masked network in float32 against itself in float64, likewise.
        sensitivity: how far outputs of two inputs differ, relative to the largest.
        seconds: of processor time, on one thread. ``graph``: tracing and labels alone; ``compact``: from float32 model
            to compact model, certificate included; ``total``.
    """

    suite: str
    name: str
    family: str
    case: str
    status: str = "ok"
    note: str = ""
    shapes: list[int] = field(default_factory=list)
    module: str = ""
    dead: int = 0
    removed: int = 0
    carried: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    missed_at: dict[str, int] = field(default_factory=dict)
    params: list[int] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    rounding: float | None = None
    sensitivity: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Removed, of what is removable in case (a); ``None`` where nothing is."""
        if self.case != "a":
            return None
        removable = self.removed + sum(self.missed.values())
        return self.removed / removable if removable else None


def without_places(reason: str) -> str:
    """The reason without places and numbers: the parts in alphabetical order."""
    parts = set()
    for part in reason.split("; "):
        part = re.sub(r" \(at [^)]*\)", "", part)
        part = re.sub(r"constant -?[\d.e+-]+", "constant", part)
        part = re.sub(r"(padded|folded into|groups of|read by|channel of) \S+", r"\1 ...", part)
        part = re.sub(r"^\S+\.\S+ (belongs|reads|is no)", r"... \1", part)
        parts.add(re.sub(r"(?<![A-Za-z_\d])\d+(?![A-Za-z_\d])", "N", part))
    return "; ".join(sorted(parts))


def is_exact(reason: str) -> bool:
    """Whether a reason (without places) is one of ``EXACT_REASONS``: one part of several is enough."""
    return any(re.search(pattern, part) for part in reason.split("; ") for pattern in EXACT_REASONS.values())


def places(reason: str) -> str:
    """The places that a reason names."""
    return ", ".join(sorted(set(re.findall(r"\(at ([^)]*)\)", reason))))
