"""How importance is judged, and what limits the choice."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import ConfigError
from compress.pruning.criteria import CRITERIA
from compress.pruning.criterion import NORMALISATIONS
from compress.surgery.rounding import check_round_to


@dataclass(frozen=True)
class Policy:
    """A criterion, and how its scores decide.

    Attributes:
        criterion: a name in ``CRITERIA``.
        normalise: a name in ``NORMALISATIONS``; by default what suits the criterion.
        per_layer: every layer loses the same share, instead of the least important groups of the whole network.
        min_channels: output channels that every layer keeps at least; layers that have no more lose none.
        round_to: channels leave in blocks of this many, so that the width of every layer that loses any is a multiple
            of it; 1 for channel by channel.

    Raises:
        ConfigError: an unknown name, or a floor or a block below 1.
    """

    criterion: str = "magnitude"
    normalise: str | None = None
    per_layer: bool = False
    min_channels: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ConfigError(f"unknown criterion {self.criterion!r}; known: {', '.join(CRITERIA)}")
        if self.normalise is not None and self.normalise not in NORMALISATIONS:
            raise ConfigError(f"unknown normalisation {self.normalise!r}; known: {', '.join(NORMALISATIONS)}")
        if self.min_channels < 1:
            raise ConfigError(f"min_channels is {self.min_channels}; every layer must keep at least one channel")
        check_round_to(self.round_to)

    @property
    def normalisation(self) -> str:
        """The name in ``NORMALISATIONS`` that is used."""
        return self.normalise or CRITERIA[self.criterion].normalise
