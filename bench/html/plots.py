"""Numbers of the plots: where each mark lies. SVG units are CSS pixels on a phone of 360 pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 360.0
MARGIN = 10.0
BINS = 60
RIDGE_HEIGHT = 66.0
SHOWN_SHARE = 0.995  # of the samples of a distribution; the number and the largest of the others are written beside
LOG_FROM = 4.0  # largest over smallest value from which an axis is logarithmic
DECADE_TICKS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: its place and its text."""

    x: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A horizontal axis over the plot's width."""

    low: float
    high: float
    log: bool

    def x(self, value: float) -> float:
        """Where a value lies; those outside lie at the end."""
        share = (self._scaled(value) - self._scaled(self.low)) / (self._scaled(self.high) - self._scaled(self.low))
        return MARGIN + min(1.0, max(0.0, share)) * (WIDTH - 2 * MARGIN)

    def edges(self, bins: int) -> list[float]:
        """The ends of bins of equal width on the page."""
        space = np.geomspace if self.log else np.linspace
        return [float(edge) for edge in space(self.low, self.high, bins + 1)]

    def ticks(self, count: int = 5) -> list[Tick]:
        """Round values, no more than about `count`."""
        values = _log_ticks(self.low, self.high) if self.log else []
        if not 2 <= len(values) <= count + 2:
            values = _linear_ticks(self.low, self.high, count)
        return [Tick(self.x(value), f"{value:.12g}") for value in values]

    def _scaled(self, value: float) -> float:
        return math.log(max(value, self.low)) if self.log else value


def axis(values: Sequence[float], *, pad: float = 0.02) -> Axis:
    """An axis that shows all values, a little wider."""
    low, high = min(values), max(values)
    log = low > 0 and high / low > LOG_FROM
    if log:
        return Axis(low=low / (1 + pad), high=high * (1 + pad), log=True)
    extra = (high - low) * pad or abs(high) * pad or 1.0
    return Axis(low=low - extra, high=high + extra, log=False)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**decade for decade in decades for factor in DECADE_TICKS]
    return [value for value in values if low <= value <= high]


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """One row of a distribution plot.

    Attributes:
        kind: ``model`` or ``baseline``.
        path: SVG path of the histogram's outline, the row's bottom at y 0.
        median: Place of the median.
        median_low: Of its interval's lower end.
        median_high: Of its upper end.
        p99: Place of the 99 % quantile.
        beyond: How many samples are larger than the axis.
        largest_ms: The largest sample, as text.
        outliers: Samples beyond Tukey's outer fence.
    """

    kind: str
    path: str
    median: float
    median_low: float
    median_high: float
    p99: float
    beyond: int
    largest_ms: str
    outliers: int


def histogram_axis(samples: Sequence[Sequence[float]]) -> Axis:
    """One axis for several distributions: all but the last half per cent of each."""
    return axis([value for values in samples for value in (min(values), float(np.quantile(values, SHOWN_SHARE)))])


def histogram_path(values: Sequence[float], over: Axis, height: float = RIDGE_HEIGHT) -> str:
    """The outline of a histogram, closed along y 0; heights grow upwards, that is to negative y."""
    edges = over.edges(BINS)
    counts, _ = np.histogram([value for value in values if value <= over.high], bins=edges)
    top = max(1, int(counts.max()))
    points = [f"M{over.x(edges[0]):.1f} 0"]
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        y = -height * int(count) / top
        points.append(f"L{over.x(left):.1f} {y:.1f}L{over.x(right):.1f} {y:.1f}")
    return "".join([*points, f"L{over.x(edges[-1]):.1f} 0Z"])


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Figures of the processes on an axis, with the interval of the whole.

    Attributes:
        places: Of each process, in order.
        low: Place of the interval's lower end.
        high: Of its upper end.
        value: Of the figure.
        reference: Where model and baseline are alike; None without a baseline.
    """

    places: tuple[float, ...]
    low: float
    high: float
    value: float
    reference: float | None
    ticks: tuple[Tick, ...]


def dots(values: Sequence[float], figure: tuple[float, float, float], reference: float | None = None) -> Dots:
    """Place `values`, and `figure`: lower end, value, upper end."""
    shown = axis([*values, *figure, *([] if reference is None else [reference])], pad=0.05)
    return Dots(
        places=tuple(shown.x(value) for value in values),
        low=shown.x(figure[0]),
        value=shown.x(figure[1]),
        high=shown.x(figure[2]),
        reference=None if reference is None else shown.x(reference),
        ticks=tuple(shown.ticks()),
    )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame of a real-time run: its place, and whether it came in time, late or never."""

    x: float
    y: float
    state: str


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Responses of frames in order, one process after the other; y grows downwards.

    Attributes:
        kind: ``model`` or ``baseline``.
        frames: Every frame.
        deadline: Its line.
        breaks: Where a process ends and the next begins.
    """

    kind: str
    frames: tuple[Frame, ...]
    deadline: float
    breaks: tuple[float, ...]


STRIP_HEIGHT = 90.0


def strip(kind: str, runs: Sequence[Sequence[float | None]], deadline: float, top: float) -> Strip:
    """Place the responses; dropped frames lie at the upper edge.

    Args:
        kind: Of the model.
        runs: Responses of each process in milliseconds; None for a dropped frame.
        deadline: In milliseconds.
        top: The largest response to show, for all strips alike.
    """
    every = [response for run in runs for response in run]
    step = (WIDTH - 2 * MARGIN) / max(1, len(every) - 1)

    def y(response: float) -> float:
        return STRIP_HEIGHT * (1 - min(response, top) / top)

    frames = [
        Frame(x=MARGIN + index * step, y=0.0, state="dropped")
        if response is None
        else Frame(x=MARGIN + index * step, y=y(response), state="late" if response > deadline else "met")
        for index, response in enumerate(every)
    ]
    ends = np.cumsum([len(run) for run in runs])[:-1]
    return Strip(
        kind=kind,
        frames=tuple(frames),
        deadline=y(deadline),
        breaks=tuple(MARGIN + (float(end) - 0.5) * step for end in ends),
    )
