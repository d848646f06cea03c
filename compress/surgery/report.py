"""What surgery did, in numbers and in words."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.files import write_json
from compress.surgery.verify import Agreement


@dataclass(frozen=True)
class LayerWidth:
    """Output channels of one layer.

    Attributes:
        before: channels of the original; ``after`` of the compact network.
        dead: channels of the original whose filters are all zero.
        kept: for dead channels that stay, each reason and how many channels it holds.
    """

    before: int
    after: int
    dead: int
    kept: dict[str, int]


@dataclass(frozen=True)
class CompactReport:
    """What surgery did, and the certificate that it changed nothing.

    Attributes:
        params_before: parameters of the original; ``params_after`` of the compact network.
        macs_before: multiply-accumulates for the example inputs as given; ``macs_after`` likewise.
        max_abs_error: largest output difference of all comparisons in the network's own precision.
        max_relative_error: the same relative to the original's largest output.
        max_exact_error: largest relative difference in float64; ``None`` where the model has no float64 form.
        agreements: every comparison.
        layers: widths by layer.
        selections: path of each BatchNorm that reads only some of the channels -> (how many, of how many).
        constant_layers: paths of the layers that were replaced by their constant.
        form: ``"class"`` for a network of the original's class, ``"graph"`` for an ``fx.GraphModule``.
        rewritten: in graph form, each line of the user's code that the class could not have run with these channels,
            and what was done about it.
        more_removed: in graph form, channels that left and that the class would have had to keep; ``None`` where the
            class was not tried.
        notes: what else is different, in words.
        seconds: how long each stage took: ``analysis``, ``cut``, ``type check``, ``comparison``.
    """

    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    max_abs_error: float
    max_relative_error: float
    max_exact_error: float | None
    agreements: tuple[Agreement, ...]
    layers: dict[str, LayerWidth]
    selections: dict[str, tuple[int, int]]
    constant_layers: tuple[str, ...]
    form: str
    rewritten: tuple[str, ...] = ()
    more_removed: int | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, str]:
        """Layer -> why dead channels of it stay, in words."""
        return {
            layer: "; ".join(
                f"{count} {'channel' if count == 1 else 'channels'}: {why}" for why, count in w.kept.items()
            )
            for layer, w in self.layers.items()
            if w.kept
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {**dataclasses.asdict(self), "kept": self.kept}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON; the file appears whole or not at all."""
        write_json(Path(path), self.to_dict())
