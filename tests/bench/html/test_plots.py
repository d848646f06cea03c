import numpy as np
import pytest

from bench.html import plots
from bench.html.plots import MARGIN, WIDTH


def test_an_axis_places_its_ends_at_the_margins() -> None:
    for low, high in ((0.0, 1.0), (0.1, 100.0), (-5.0, 5.0)):
        over = plots.axis([low, high])
        assert MARGIN <= over.x(low) < over.x(high) <= WIDTH - MARGIN
        assert over.x(over.low) == pytest.approx(MARGIN)
        assert over.x(over.high) == pytest.approx(WIDTH - MARGIN)
        assert over.x(high * 1e6 + 1) == pytest.approx(WIDTH - MARGIN)


def test_an_axis_is_logarithmic_from_a_factor_of_four() -> None:
    assert not plots.axis([1.0, 3.9]).log
    over = plots.axis([1.0, 100.0])
    assert over.log
    # On it equal factors are equal lengths.
    assert over.x(10) - over.x(1) == pytest.approx(over.x(100) - over.x(10))
    assert not plots.axis([0.0, 100.0]).log


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.58, 1.02, ["0.6", "0.7", "0.8", "0.9", "1"]),
        (0.0, 10.0, ["0", "2", "4", "6", "8", "10"]),
        (0.9, 110.0, ["1", "2", "5", "10", "20", "50", "100"]),
        (0.00012, 0.00016, ["0.00012", "0.00013", "0.00014", "0.00015", "0.00016"]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, texts: list[str]) -> None:
    over = plots.Axis(low=low, high=high, log=high / low > plots.LOG_FROM if low > 0 else False)
    ticks = over.ticks()
    assert [tick.text for tick in ticks] == texts
    assert all(tick.x == pytest.approx(over.x(float(tick.text))) for tick in ticks)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("spread", [1.0, 1.0001, 1.5, 3.9, 4.1, 12.0, 1e5])
def test_every_axis_has_ticks_that_do_not_crowd(factor: float, spread: float) -> None:
    ticks = plots.axis([factor, factor * spread]).ticks()
    assert 2 <= len(ticks) <= 7
    assert np.diff([tick.x for tick in ticks]).min() > 20


def test_a_histogram_holds_every_sample_up_to_its_axis() -> None:
    over = plots.Axis(low=0.0, high=60.0, log=False)
    path = plots.histogram_path([0.5] * 3 + [30.5] + [1000.0], over, height=30.0)
    heights = [-float(part.split(" ")[1].rstrip("Z")) for part in path.split("L")[1:-1]][::2]
    assert len(heights) == plots.BINS
    assert {index: height for index, height in enumerate(heights) if height} == {0: 30.0, 30: 10.0}
    assert path.startswith("M10.0 0")
    assert path.endswith("L350.0 0Z")


def test_the_axis_of_histograms_leaves_the_last_half_per_cent_out() -> None:
    samples = [1.0 + index / 1000 for index in range(1000)]
    over = plots.histogram_axis([[*samples, 50.0], [1.5]])
    assert over.low < 1.0
    assert 1.99 < over.high < 2.1


def test_frames_are_met_late_or_dropped() -> None:
    strip = plots.strip("model", [[1.0, 3.0], [None, 9.0, 2.0]], deadline=2.0, top=8.0)
    assert [frame.state for frame in strip.frames] == ["met", "late", "dropped", "late", "met"]
    assert [frame.y for frame in strip.frames] == pytest.approx([78.75, 56.25, 0.0, 0.0, 67.5])
    assert strip.deadline == pytest.approx(67.5)
    assert strip.frames[0].x == MARGIN
    assert strip.frames[-1].x == pytest.approx(WIDTH - MARGIN)
    assert len(strip.breaks) == 1
    assert strip.frames[1].x < strip.breaks[0] < strip.frames[2].x


def test_dots_lie_on_the_axis_of_interval_and_reference() -> None:
    dots = plots.dots([0.5, 0.6], (0.52, 0.55, 0.58), reference=1.0)
    assert dots.reference is not None
    assert dots.places[0] < dots.low < dots.value < dots.high < dots.places[1] < dots.reference
    assert plots.dots([0.5], (0.5, 0.5, 0.5)).reference is None
