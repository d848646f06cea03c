"""``compress inspect``: which channels are dead, which stay, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from compress.train.rundir import Run

Row = tuple[str, ...]
RUN_HEADINGS: Row = ("layer", "filters", "compact", "dead", "dead but kept")
MODEL_HEADINGS: Row = ("layer", "filters", "removable", "kept because")


def inspect(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run directory or a model's name.")],
    image_size: Annotated[int, typer.Option(min=1, help="For a model: height and width, in pixels.")] = 32,
    channels: Annotated[int, typer.Option(min=1, help="For a model: channels of the images.")] = 3,
    classes: Annotated[int, typer.Option(min=1, help="For a model: number of classes.")] = 10,
) -> None:
    """Show each layer's channels: of a run, before and after; of a model, how many could leave it."""
    from rich.console import Console

    from compress.cli.tables import layer_table, summary_table

    console = Console()
    if Path(target).is_dir():
        from compress.train.rundir import open_run

        run = open_run(Path(target))
        console.print(summary_table(run.summary))
        console.print(layer_table(f"layers of {target}", RUN_HEADINGS, run_rows(run)))
    else:
        rows = model_rows(target, image_size=image_size, channels=channels, classes=classes)
        console.print(layer_table(f"{target}, {channels}x{image_size}x{image_size} images", MODEL_HEADINGS, rows))


def run_rows(run: Run) -> list[Row]:
    """Layer, output channels before and after, those whose filters are all zero, and why some of these stayed."""
    layers: dict[str, dict[str, int]] = run.summary["report"]["layers"]
    kept: dict[str, str] = run.summary["report"]["kept"]
    return [
        (name, f"{width['before']:,}", f"{width['after']:,}", f"{width['dead']:,}", kept.get(name, ""))
        for name, width in layers.items()
    ]


def model_rows(name: str, *, image_size: int, channels: int, classes: int) -> list[Row]:
    """Layer, its output channels, how many of them could leave the network, and why the others can't."""
    import torch

    from compress.graph import channel_graph
    from compress.models import build

    model = build(name, num_classes=classes, in_channels=channels, image_size=image_size)
    graph = channel_graph(model, (torch.zeros(1, channels, image_size, image_size),))
    free, reasons = graph.free(), graph.classes.reasons
    rows: list[Row] = []
    for (parameter, dim), members in graph.out_slices().items():
        if dim == 0 and graph.tensors[parameter].ndim > 1:
            why = {reason for member in members.tolist() for reason in reasons.get(member, ())}
            layer = parameter.removesuffix(".weight")
            rows.append((layer, f"{len(members):,}", f"{int(free[members].sum()):,}", "; ".join(sorted(why))))
    return rows
