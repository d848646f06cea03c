"""``compress inspect``: which channels are dead, which stay, and why."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.errors import UnknownModelError

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show each layer's channels: of a run, before and after; of a model, how many could leave it."""
    from compress.cli.tables import console, layer_table, stays_note, summary_table

    screen = console()
    run = _run(target)
    layers = _run_layers(run) if run else model_layers(target, image_size, channels, classes)
    if as_json:
        changes = {"changes": run_changes(run)} if run else {}
        typer.echo(json.dumps({"target": target, "layers": layers, **changes}, indent=2))
    elif run:
        screen.print(summary_table(run.summary))
        screen.print(layer_table(f"layers of {target}", RUN_HEADINGS, [row(layer) for layer in layers]))
        for change in run_changes(run):
            screen.print(f"  {change}", highlight=False)
        if note := stays_note(shlex.quote(target), run.summary["report"]):
            typer.echo(note)
    else:
        title = f"{target}, {channels}x{image_size}x{image_size} images"
        screen.print(layer_table(title, MODEL_HEADINGS, [row(layer) for layer in layers]))


def _run(target: str) -> Run | None:
    if not Path(target).is_dir():
        return None
    from compress.train.rundir import open_run

    return open_run(Path(target))


def row(layer: dict[str, Any]) -> Row:
    """The layer's numbers, and its reasons in one cell."""
    name, *numbers, kept = layer.values()
    counted = [f"{count} {'channel' if count == 1 else 'channels'}: {why}" for why, count in kept.items()]
    return (name, *(f"{number:,}" for number in numbers), "; ".join(counted))


def _run_layers(run: Run) -> list[dict[str, Any]]:
    return report_layers(run.summary["report"])


def report_layers(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each layer's output channels before and after, those whose filters are all zero, and why some of these stayed."""
    return [
        {"layer": name, **{key: width[key] for key in ("before", "after", "dead", "kept")}}
        for name, width in report["layers"].items()
    ]


def run_changes(run: Run) -> list[str]:
    """What became of the network besides that it is narrower, a line each."""
    return report_changes(run.summary["report"])


def report_changes(report: dict[str, Any]) -> list[str]:
    """The same, from the report of surgery as plain data."""
    return [
        *(
            f"{path} reads {some} of the {every} channels there are"
            for path, (some, every) in report["selections"].items()
        ),
        *(f"{path} returns the same for every input: replaced by its constant" for path in report["constant_layers"]),
        *(f"{line}" for line in report["rewritten"]),
        *report["notes"],
    ]


def model_layers(name: str, image_size: int, channels: int, classes: int) -> list[dict[str, Any]]:
    """Each layer's output channels, how many of them could leave the network, and why the others can't."""
    import torch

    from compress.graph import channel_graph
    from compress.models import build

    try:
        model = build(name, num_classes=classes, in_channels=channels, image_size=image_size)
    except UnknownModelError as error:
        raise UnknownModelError(f"there is no run directory {name}, and {error}") from error
    graph = channel_graph(model, (torch.zeros(1, channels, image_size, image_size),))
    free, reasons = graph.free(), graph.classes.reasons
    layers: list[dict[str, Any]] = []
    for (parameter, dim), members in graph.out_slices().items():
        if dim == 0 and graph.tensors[parameter].ndim > 1:
            kept: dict[str, int] = {}
            for member in members[~free[members]].tolist():
                why = "; ".join(sorted(reasons[member]))
                kept[why] = kept.get(why, 0) + 1
            layer = parameter.removesuffix(".weight")
            layers.append({"layer": layer, "before": len(members), "removable": int(free[members].sum()), "kept": kept})
    return layers
