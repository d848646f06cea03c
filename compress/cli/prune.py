"""``compress prune``: zero the least important channels of a run's network, and remove them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from compress.pruning import Target

COSTS_HELP = "50%, 0.5: share of the network that is given; 800k, 1.5M, 2G: a number."


def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A complete run directory, dense or sparse.")],
    out: Annotated[Path, typer.Option(help="The new run directory.")],
    threshold: Annotated[float | None, typer.Option(help="Remove every group whose score is below.")] = None,
    keep_ratio: Annotated[str | None, typer.Option(metavar="R", help="Share of the groups that stays.")] = None,
    target_macs: Annotated[str | None, typer.Option(metavar="M", help=f"MACs to come down to. {COSTS_HELP}")] = None,
    target_params: Annotated[
        str | None, typer.Option(metavar="P", help="Parameters to come down to, likewise.")
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="magnitude (norm of the group), bn-scale (mean |gamma|) or taylor (predicted change of the loss)."
        ),
    ] = "magnitude",
    normalise: Annotated[
        str | None,
        typer.Option(
            help="none, size (by the root of the group's number of weights) or layer (by the layer's mean); by default "
            "layer, for bn-scale none. A threshold is on scores after this."
        ),
    ] = None,
    per_layer: Annotated[
        bool,
        typer.Option("--per-layer", help="Every layer loses the same share; by default the whole network's least."),
    ] = False,
    min_channels: Annotated[int, typer.Option(help="Output channels that every layer keeps at least.")] = 1,
    round_to: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Channels leave in blocks, so that widths are multiples of N (8, or 16 with AVX-512, is faster than "
            "fewer channels); by default as RUN was trained, else 1.",
        ),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches of training images that taylor looks at.")] = 32,
    recalibrate: Annotated[
        int, typer.Option(min=0, help="Batches of training images to re-estimate BatchNorm statistics from; 0: none.")
    ] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Where RUN's images are now, if they were moved.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; the run's own by default.")] = None,
) -> None:
    """Zero the least important coupled channels of RUN's network, remove them, and verify what is left.

    One of --threshold, --keep-ratio, --target-macs, --target-params says how far to go. MACs and parameters are those
    of the compact network, and are met within 1% of the network that is given (what is compact in RUN); what cannot be
    met is refused. Accuracy is told on the validation split after each act; the test split is read once, at the end.
    compress finetune then trains the compact network on.
    """
    from compress.cli.tables import console, summary_table, told_of
    from compress.pruning import Policy
    from compress.pruning.run import Task, prune_run
    from compress.train.rundir import open_run

    target = read_target(
        {"threshold": threshold, "keep-ratio": keep_ratio, "macs": target_macs, "params": target_params}
    )
    block = open_run(run).config.run.round_to if round_to is None else round_to
    policy = Policy(criterion, normalise, per_layer, min_channels, block)
    screen = console()
    summary = prune_run(
        run,
        out,
        Task(target, policy, batches, recalibrate, device, data_dir),
        lambda line: screen.print(line, highlight=False, markup=False, soft_wrap=True),
    )
    screen.print(prune_table(summary))
    screen.print(summary_table(summary))
    for line in told_of(summary["report"]):
        typer.echo(f"{line}\n")
    directory = shlex.quote(str(out))
    typer.echo(f"run directory: {directory}\nnext:\n  compress finetune {directory}")
    typer.echo(f"  compress inspect {directory}\n  compress export {directory} --onnx model.onnx")


OPTIONS = {
    "threshold": "--threshold",
    "keep-ratio": "--keep-ratio",
    "macs": "--target-macs",
    "params": "--target-params",
}
"""Kind of target -> the option that asks for it."""


def read_target(given: dict[str, float | str | None]) -> Target:
    """The one target among the options, by kind.

    Raises:
        ConfigError: none or several are given, or what is given is no amount.
    """
    from compress.pruning import Target
    from compress.pruning.target import parse_amount

    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) != 1:
        got = " and ".join(OPTIONS[kind] for kind in asked) or "none"
        raise ConfigError(f"give exactly one of {', '.join(OPTIONS.values())}; got {got}")
    [(kind, value)] = asked.items()
    return Target(kind, parse_amount(value, OPTIONS[kind]) if isinstance(value, str) else value)


def prune_table(summary: dict[str, Any]) -> Table:
    """What was asked for and reached, and the validation accuracy after each act."""
    from compress.cli.tables import pairs_table

    told = summary["origin"]["prune"]
    report, target = told["report"], told["target"]
    rows = {
        "asked": f"{OPTIONS[target['kind']]} {target['value']:g}",
        "groups kept": _share(report["groups"] - report["zeroed"], report["groups"]),
        "MACs": _share(report["macs_after"], report["macs_before"]),
        "parameters": _share(report["params_after"], report["params_before"]),
        **{f"accuracy {act}": f"{accuracy:.2%}" for act, accuracy in told["validation_accuracy"].items()},
        "accuracy compact": f"{summary['accuracy']['validation']['compact']:.2%}",
    }
    if report["fixed"]:
        rows["groups that could not be chosen"] = f"{report['fixed']:,}"
    return pairs_table(rows, f"pruned by {told['criterion']}; accuracy on validation")


def _share(after: int, before: int) -> str:
    return f"{after:,} of {before:,} ({after / before:.2%})"
