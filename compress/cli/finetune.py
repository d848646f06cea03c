"""``compress finetune``: train the compact network of a run on."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from compress.train.config import Config
    from compress.train.rundir import Run

SUFFIX = "-finetuned"
"""Where the new run lies, unless ``--out`` says so: beside the old one."""

FIXED = ("model.", "data.", "run.seed")
"""Keys of a recipe that make the network, the images and the split: those of the run that is trained on ..."""

FREE = ("data.dir", "data.download", "data.memory_gib", "data.workers", "data.augment.")
"""... but for these, which say where images lie, how they are read, or how they are varied."""


def finetune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A complete run directory.")],
    out: Annotated[Path | None, typer.Option(help="The new run directory; RUN-finetuned by default.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images; RUN's by default.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate before the schedule's factor; RUN's by default.")
    ] = None,
    penalty: Annotated[str | None, typer.Option(help="l0, l1, group-lasso, ...; none by default.")] = None,
    strength: Annotated[float | None, typer.Option(help="Factor of the penalty.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Times to do so, each on what the last one left; earlier ones in OUT-round1, ...")
    ] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="Where RUN's images are now, if they were moved.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any key of a recipe; repeatable.")
    ] = None,
) -> None:
    """Train the compact network of RUN on, by RUN's recipe but without a penalty, on the same images and split.

    Channels that have left do not come back. The new run directory is one like RUN's; inspect, export, prune and
    finetune take it. Ctrl-C stops cleanly; --resume continues.
    """
    import sys

    from compress.cli.tables import console, rounds_table, summary_table, told_of
    from compress.train.interrupt import EXIT_INTERRUPTED, Interrupted
    from compress.train.rundir import SUMMARY, check_new, images_at, open_run
    from compress.train.world import is_main

    directory = out or run.resolve().with_name(run.resolve().name + SUFFIX)
    given: dict[str, object] = {
        "schedule.epochs": epochs,
        "optimizer.lr": learning_rate,
        "penalty.name": penalty,
        "penalty.strength": strength,
        "run.device": device,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    earlier = [directory.with_name(f"{directory.name}-round{number}") for number in range(1, rounds)]
    targets = [*earlier, directory]
    if not resume:
        open_run(run)
        for target in targets:
            check_new(target)
    before = None
    summaries = []
    screen = console(quiet=not is_main())
    for source, target in itertools.pairwise([run, *targets]):
        opened = open_run(source)
        before = before or opened.summary
        if target in earlier and (target / SUMMARY).is_file():
            summaries.append(open_run(target).summary)
            continue
        if rounds > 1:
            screen.print(
                f"round {len(summaries) + 1} of {rounds}: {source} -> {target}", highlight=False, soft_wrap=True
            )
        going_on = resume and (rounds == 1 or target.exists())
        try:
            now = {**flags, **images_at(opened.config, data_dir)}
            summaries.append(_round(opened, target, now, settings or [], resume=going_on, console=screen))
        except Interrupted as stop:
            line = ["finetune", str(run), "--out", str(directory), "--resume"]
            if rounds > 1:  # rounds to come need the options too
                line = [*sys.argv[1:], *(() if resume else ("--resume",))]
            if is_main():
                typer.echo(f"stopped; to continue: {shlex.join(['compress', *line])}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from stop
    if not is_main():
        return
    assert before is not None
    screen.print(summary_table(summaries[-1]))
    for note in told_of(summaries[-1]["report"]):
        typer.echo(note)
    if rounds > 1:
        screen.print(rounds_table([before, *summaries]))
    for split, now in summaries[-1]["accuracy"].items():
        if now["compact"] is not None:
            told = f"{split} accuracy: {before['accuracy'][split]['compact']:.2%} before, {now['compact']:.2%} now"
            screen.print(told, highlight=False, soft_wrap=True)
    quoted = shlex.quote(str(directory))
    typer.echo(f"\nrun directory: {quoted}\nnext:\n  compress inspect {quoted}")
    typer.echo(f"  compress export {quoted} --onnx model.onnx")


def _round(
    opened: Run, directory: Path, flags: dict[str, object], settings: list[str], *, resume: bool, console: Console
) -> dict[str, Any]:
    """Train one run's compact network on, into a directory; its summary."""
    from compress.train.config import NO_PENALTY, SHAPES
    from compress.train.recipe import resolve
    from compress.train.rundir import CONFIG, Origin, saved_recipe
    from compress.train.session import train

    fresh: dict[str, object] = {"penalty.name": NO_PENALTY, "run.dense_baseline": False}
    recipe = saved_recipe(directory) if resume else opened.path / CONFIG
    # the old run's size was met, and its penalty's shape is its own: neither is meant for another penalty
    without = () if resume else ("penalty.budget", *(f"penalty.{key}" for key in SHAPES))
    config = resolve(recipe, {**({} if resume else fresh), **flags, "run.out": directory}, settings, without=without)
    check_same_images(opened.config, config)
    before = {split: accuracy["compact"] for split, accuracy in opened.summary["accuracy"].items()}
    origin = Origin("finetune", opened, {"finetune": {"accuracy_before": before}})
    return train(config, resume=resume, console=console, origin=origin)


def check_same_images(before: Config, now: Config) -> None:
    """Refuse a recipe that makes another network, other images or another split.

    Raises:
        ConfigError: every such key is listed.
    """
    from compress.train.recipe import changed_keys
    from compress.train.rundir import images_at

    free = (*FREE, *(("data.name",) if now.data.name == images_at(before, now.data.dir).get("data.name") else ()))
    wrong = [change for change in changed_keys(before, now) if change.startswith(FIXED) and not change.startswith(free)]
    if wrong:
        listed = "\n".join(f"  {change}" for change in wrong)
        raise ConfigError(
            f"a run is fine-tuned with its own network, images and split, so that none of what it is judged by was "
            f"trained on\n{listed}\nleave these as they were"
        )
