"""A picture of a run, from its log: ``curves.png``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from compress.files import write_atomic
from compress.train.metrics import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"

NAMED_LAYERS = 10
"""With more layers than this only the first and the last are named."""

INK, LINE, PALE, GRID = "#2b2b2b", "#0b6e99", "#8fb8c9", "#d9d9d9"


def can_draw() -> bool:
    """Whether matplotlib is installed, which only pictures need."""
    return find_spec("matplotlib") is not None


def draw_curves(records: list[Record], file: Path, *, title: str, dense: list[Record]) -> None:
    """Draw accuracy, and where there is a penalty its strength and what lives of each layer, over the epochs.

    Args:
        records: The log of the run, one epoch or more.
        file: Where the picture goes, as PNG.
        title: Above it.
        dense: The log of its dense baseline; empty where there is none.

    Raises:
        WriteError: The file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = [_accuracy] if records[0]["live_groups"] is None else [_accuracy, _strength, _live_groups]
    with mpl.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(7.5, 0.7 + 2.2 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), sharex=True, squeeze=False)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            axes.grid(color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            panel(axes, records, dense)
        grid[-1, 0].set_xlabel("epoch")
        figure.suptitle(title, x=0.02, ha="left", fontsize=11)
        write_atomic(file, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _accuracy(axes: Axes, records: list[Record], dense: list[Record]) -> None:
    epochs = [record["epoch"] for record in records]
    marker = "o" if len(epochs) == 1 else None
    axes.plot(epochs, [100 * r["accuracy"] for r in records], color=PALE, marker=marker, label="training")
    if dense:
        over = [record["epoch"] for record in dense]
        values = [100 * r["validation_accuracy"] for r in dense]
        axes.plot(over, values, color=INK, linewidth=1, linestyle="--", label="validation, dense baseline")
    axes.plot(epochs, [100 * r["validation_accuracy"] for r in records], color=LINE, marker=marker, label="validation")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False, loc="lower right")


def _strength(axes: Axes, records: list[Record], _dense: list[Record]) -> None:
    axes.step([r["epoch"] for r in records], [r["strength"] for r in records], where="mid", color=LINE)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("strength\nat the epoch's end")


def _live_groups(axes: Axes, records: list[Record], _dense: list[Record]) -> None:
    import matplotlib as mpl
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    layers = list(records[0]["live_groups"])
    colours = mpl.colormaps["viridis"]
    for depth, layer in enumerate(layers):
        named = len(layers) <= NAMED_LAYERS or depth in (0, len(layers) - 1)
        axes.plot(
            [r["epoch"] for r in records if layer in r["live_groups"]],
            [r["live_groups"][layer] for r in records if layer in r["live_groups"]],
            color=colours(0.9 * depth / max(len(layers) - 1, 1)),
            marker="o" if len(records) == 1 else None,
            label=layer if named else None,
        )
    if all(count > 0 for record in records for count in record["live_groups"].values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:  # a layer may have died out
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("live groups")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
