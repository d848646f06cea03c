"""``compress train``: from a recipe to a complete run directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from compress.errors import ConfigError

OVER_BUDGET = 0.01
"""Share of the dense network by which the compact one may miss a budget before that is told."""


def train(
    recipe: Annotated[Path | None, typer.Option(help="TOML file; flags and --set override it.")] = None,
    model: Annotated[
        str | None, typer.Option(help="lenet5, resnet20, ..., torchvision:NAME, timm:NAME or FILE.py:factory.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Start from these: a state dict, .safetensors, .pth or .pt.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="digits, mnist, ..., or a folder of images by class.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where named data sets are kept.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a data set that is not there.")] = False,
    image_size: Annotated[int | None, typer.Option(help="Height and width to bring images to, in pixels.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many training images.")] = None,
    penalty: Annotated[
        str | None,
        typer.Option(
            help="l0, l1, lp, transformed-l1, mcp, scad, log-sum, l1-over-l2, hoyer, group-lasso, "
            "sparse-group-lasso, hard-concrete or none; shapes by --set penalty.p=0.75 and the like."
        ),
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="weight, kernel, filter, channel, bn-scale or coupled.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Factor of the penalty.")] = None,
    target_macs: Annotated[
        str | None,
        typer.Option(help="Move the strength until this share (30%) or number (1.5M) of multiply-accumulates is left."),
    ] = None,
    target_params: Annotated[str | None, typer.Option(help="The same for parameters.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    compact_every: Annotated[
        int | None,
        typer.Option(
            help="Take dead channels out of the network every so many epochs (0: only at the end). Later epochs are "
            "shorter; a channel that has left cannot come back."
        ),
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Leave dead channels in the compact network until every width is a multiple of N: 8, or 16 with "
            "AVX-512, is faster than fewer channels.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result on the CPU.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/MODEL-DATASET-PENALTY by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    dense_baseline: Annotated[
        bool, typer.Option("--dense-baseline", help="First train without penalty, to compare with.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any key of a recipe; repeatable.")
    ] = None,
) -> None:
    """Train with a sparsity penalty, remove the dead channels, and verify what is left.

    The run directory gets the resolved recipe, the compact and the masked weights, the plan, a log and a summary.
    Ctrl-C stops cleanly; --resume continues.
    """
    flags = {
        "model.name": model,
        "model.weights": weights,
        "data.name": dataset,
        "data.dir": data_dir,
        "data.download": download or None,
        "data.image_size": image_size,
        "data.limit": limit,
        "penalty.name": penalty,
        "penalty.granularity": granularity,
        "penalty.strength": strength,
        **_budget({"macs": target_macs, "params": target_params}),
        "penalty.compact_every": compact_every,
        "schedule.epochs": epochs,
        "run.device": device,
        "run.seed": seed,
        "run.out": out,
        "run.dense_baseline": dense_baseline or None,
        "run.round_to": round_to,
    }
    if resume and recipe is None and out is None:
        raise ConfigError("--resume: say which run, --out RUN, or give its --recipe again")

    from compress.cli.tables import console, stays_note, summary_table, told_of
    from compress.train.config import NO_PENALTY
    from compress.train.interrupt import EXIT_INTERRUPTED, Interrupted
    from compress.train.recipe import resolve
    from compress.train.rundir import saved_recipe
    from compress.train.session import train as run
    from compress.train.world import is_main

    if resume and recipe is None and out is not None:
        recipe = saved_recipe(out)
    config = resolve(recipe, flags, settings or ())
    screen = console(quiet=not is_main())
    directory = shlex.quote(str(out or config.out))
    try:
        summary = run(config, resume=resume, console=screen)
    except Interrupted as stop:
        if is_main():
            typer.echo(f"stopped; to continue: compress train --out {directory} --resume", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from stop
    if not is_main():
        return
    screen.print(summary_table(summary))
    if summary["budget"]:
        met = summary["budget"]
        shares = [f"{met[key] / met['given']:.1%}" for key in ("reached", "target")]
        typer.echo(f"\nbudget: {shares[0]} of the {met['measure']} were left when the penalty ended, {shares[1]} asked")
        _compare_with_budget(summary)
    for line in told_of(summary["report"]):
        typer.echo(f"\n{line}")
    note = stays_note(str(directory), summary["report"])
    whole = summary["parameters"]["compact"] == summary["parameters"]["dense"]
    if note:
        typer.echo(f"\n{note}")
    elif config.penalty.name != NO_PENALTY and whole:
        typer.echo(
            f"\nnote: no channel left the network ({summary['dead_share']:.1%} of the penalty's groups are zero); "
            f"train with a greater --strength (now {config.penalty.strength:g}), or see why with compress inspect"
        )
    typer.echo(f"\nrun directory: {directory}\nnext:\n  compress inspect {directory}")
    typer.echo(f"  compress export {directory} --onnx model.onnx")


def _compare_with_budget(summary: dict[str, Any]) -> None:
    """Say so where channels that are zero could not leave: then the compact network is larger than the budget."""
    met, key = summary["budget"], {"params": "parameters", "macs": "macs", "bytes": "bytes"}
    if met["measure"] in key:
        of = summary[key[met["measure"]]]
        share, asked = of["compact"] / of["dense"], met["target"] / met["given"]
        if share > asked + OVER_BUDGET:
            typer.echo(
                f"note: the compact network has {share:.1%} of the {met['measure']}, more than was asked: "
                "channels that are zero could not leave it; compress inspect shows which, and why"
            )


def _budget(targets: dict[str, str | None]) -> dict[str, object]:
    """The keys of a budget for the one target that is given, if one is."""
    given = {measure: text for measure, text in targets.items() if text is not None}
    if len(given) > 1:
        raise ConfigError("--target-macs and --target-params: give one of them; a run ends at one size")

    from compress.pruning.target import parse_amount

    keys: dict[str, object] = {}
    for measure, text in given.items():
        keys = {
            "penalty.budget.measure": measure,
            "penalty.budget.target": parse_amount(text, f"--target-{measure}"),
        }
    return keys
