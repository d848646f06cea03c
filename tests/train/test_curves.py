"""The picture of a run: drawn for every kind of run, and left out where it cannot be."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib import pyplot
from rich.console import Console

from compress.train import curves
from compress.train.config import Config
from compress.train.session import train

Tiny = Callable[..., Config]


@pytest.mark.parametrize(
    ("settings", "panels"),
    [
        (("run.dense_baseline=true", "penalty.epochs=2"), 3),
        (("penalty.name=none", "schedule.epochs=1"), 1),
        (("penalty.granularity=weight", "penalty.name=l1", "penalty.strength=0.001"), 3),
    ],
    ids=["with a dense baseline", "without a penalty", "single weights"],
)
def test_every_run_gets_a_picture(tiny: Tiny, settings: tuple[str, ...], panels: int):
    config = tiny("run.curves=true", *settings)
    train(config)
    height, width, _ = pyplot.imread(config.out / "curves.png").shape
    assert (width, height) == (150 * 7.5, pytest.approx(150 * (0.7 + 2.2 * panels), abs=1))
    assert not (config.out / "dense" / "curves.png").exists()


def test_without_matplotlib_the_run_says_so_and_is_complete(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(curves, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    config, told = tiny("run.curves=true"), io.StringIO()
    train(config, console=Console(file=told))
    assert "no curves.png: matplotlib is not installed (pip install matplotlib" in told.getvalue()
    assert (config.out / "summary.json").exists()
    assert not (config.out / "curves.png").exists()


def record(epoch: int, layers: int) -> dict[str, object]:
    live = {f"layer{k}": max(1, 8 * k - epoch) for k in range(1, layers + 1)}
    numbers = {"accuracy": 0.5, "validation_accuracy": 0.4 + 0.1 * epoch, "strength": 0.2}
    return {"epoch": epoch, **numbers, "live_groups": live}


@pytest.mark.parametrize(("layers", "named"), [(3, 3), (10, 10), (40, 2)])
def test_of_many_layers_the_first_and_the_last_are_named(layers: int, named: int):
    axes = pyplot.figure().subplots()
    curves._live_groups(axes, [record(epoch, layers) for epoch in (1, 2, 3)], [])
    names = axes.get_legend_handles_labels()[1]
    pyplot.close()
    assert len(axes.lines) == layers
    assert len(names) == named
    assert (names[0], names[-1]) == ("layer1", f"layer{layers}")


def test_a_layer_that_left_ends_where_it_left(tmp_path: Path):
    records = [record(1, 3), record(2, 3)]
    del records[1]["live_groups"]["layer2"]
    axes = pyplot.figure().subplots()
    curves._live_groups(axes, records, [])
    pyplot.close()
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 1, 2]
