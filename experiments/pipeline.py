"""The whole way as a user walks it: train, compact, export, latency, memory; ends with one table.

    python experiments/pipeline.py --recipe recipes/digits-demo.toml --out runs/demo

Every step is one of the commands that people run, printed before it runs. The figures of the table come from the files
that these commands write. ``--markdown FILE`` keeps the table with the commands that made it; ``--insert FILE`` puts it
between the marks ``<!-- demo -->`` and ``<!-- /demo -->`` of a document. With goals (``--min-test-accuracy`` and the
like) the exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marks import insert
from rich import box
from rich.console import Console
from rich.table import Table

COMMANDS = Path(sys.executable).parent
"""Where the console scripts of this very environment lie."""

ROWS = ("dense", "compact")
MARK = "demo"
HEADINGS = (
    "test accuracy",
    "parameters",
    "MACs",
    "ONNX file",
    "latency p50",
    "its 95% interval",
    "peak memory",
)


@dataclass(frozen=True)
class Goal:
    """A figure that the result is held to.

    Attributes:
        name: What it is.
        value: What came out.
        bound: What was asked for.
        at_least: Whether the bound is a lower one.
    """

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the bound holds."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{'met   ' if self.met else 'MISSED'}  {self.name} {self.value:.4g} ({sign} {self.bound:g})"


def main() -> int:
    """Run the steps; 0 if every goal is met, 1 if not, the failing command's exit code if one fails."""
    options = _options()
    run: Path = options.out
    small, dense = run / "model.onnx", run / "model-dense.onnx"
    latency, memory = run / "latency.json", run / "memory.json"
    pair = [str(small), "--baseline", str(dense), "--device", "cpu", "--threads", str(options.threads)]
    train = ["compress", "train", "--recipe", str(options.recipe), "--out", str(run), *options.train]
    steps = [
        [*train, *(["--resume"] if (run / "config.toml").exists() else [])],
        ["compress", "export", str(run), "--onnx", str(small)],
        ["compress", "export", str(run), "--onnx", str(dense), "--dense"],
        ["bench", "latency", *pair, "--json", str(latency)],
        ["bench", "memory", *pair, "--json", str(memory)],
    ]
    started = time.monotonic()
    for command in steps:
        print(f"\n$ {shlex.join(command)}", flush=True)
        code = subprocess.run([str(COMMANDS / command[0]), *command[1:]], check=False).returncode
        if code:
            return code
    facts = {"summary": _read(run / "summary.json"), "latency": _read(latency), "memory": _read(memory)}
    cells = table_cells(**facts)
    Console().print(_table(title(facts["summary"], run), cells))
    print(f"{time.monotonic() - started:.0f} s in all; {_verdict(facts['latency'])}")
    goals = _goals(options, **facts)
    for goal in goals:
        print(goal)
    if options.markdown:
        steps[0] = train  # continuing a finished run only reads it
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(
            markdown(title(facts["summary"], run), steps, cells, facts, goals), encoding="utf-8"
        )
    if options.insert:
        insert(options.insert, MARK, markdown_table(cells))
    return 0 if all(goal.met for goal in goals) else 1


def table_cells(summary: dict[str, Any], latency: dict[str, Any], memory: dict[str, Any]) -> dict[str, list[str]]:
    """The rows of the table, by name; the last one is compact over dense."""
    rows: dict[str, list[str]] = {}
    for name in ROWS:
        side = "model" if name == "compact" else "baseline"
        time_ms, rss = latency[side]["latency"], memory[side]["memory"]
        accuracy = summary["accuracy"]["test"][name]
        rows[name] = [
            "-" if accuracy is None else f"{accuracy:.2%}",
            f"{summary['parameters'][name]:,}",
            f"{summary['macs'][name]:,}",
            f"{latency[side]['file']['file_bytes']:,} B",
            f"{time_ms['p50_ms']:.4f} ms",
            f"{time_ms['p50_low_ms']:.4f} - {time_ms['p50_high_ms']:.4f}",
            f"{rss['peak_over_bare_bytes'] / 2**20:.2f} MiB",
        ]
    ratio = latency["ratio"]
    rows["ratio"] = [
        "",
        *(f"{summary[key]['compact'] / summary[key]['dense']:.1%}" for key in ("parameters", "macs")),
        f"{latency['model']['file']['file_bytes'] / latency['baseline']['file']['file_bytes']:.1%}",
        f"{ratio['value']:.3f}",
        f"{ratio['low']:.3f} - {ratio['high']:.3f}",
        f"{memory['ratios']['peak_over_bare_bytes']:.1%}",
    ]
    return rows


def markdown(
    heading: str, steps: list[list[str]], cells: dict[str, list[str]], facts: dict[str, Any], goals: list[Goal]
) -> str:
    """The table with what it takes to make it again."""
    summary, latency = facts["summary"], facts["latency"]
    host, settings = latency["host"], latency["settings"]
    exact, accuracy = summary["report"]["max_exact_error"], summary["accuracy"]["test"]
    samples, isa = latency["model"]["latency"]["samples"], " ".join(host["isa"])
    lines = [
        f"# {heading}",
        "",
        "Printed by:",
        "",
        *(f"    {shlex.join(command)}" for command in steps),
        "",
        *markdown_table(cells),
        "",
        f"- Widths: {_widths(summary)}.",
        f"- Masked and compact outputs differ by at most {summary['max_abs_error']:.2g} on real validation images,",
        f"  and by {exact:.1g} of the largest output in float64 on random ones; test accuracy of the masked network",
        f"  {accuracy['masked']:.2%}, of the compact one {accuracy['compact']:.2%}.",
        "- dense: accuracy of the same recipe without penalty; file, latency and memory of the network before removal.",
        f"- Latency: batch 1, {settings['threads']} thread(s), {samples} interleaved samples of each network in",
        f"  {settings['runs']} processes. Memory: peak resident memory during inference over the bare runtime.",
        "  Absolute times are this machine's; the ratio is what to compare.",
        f"- Host: {host['cpu_model']}, {host['architecture']}, {isa};",
        f"  onnxruntime {host['onnxruntime']}, torch {summary['versions']['torch']}.",
    ]
    if goals:
        lines += ["", "Goals:", "", *(f"- {goal}" for goal in goals)]
    return "\n".join(lines) + "\n"


def markdown_table(cells: dict[str, list[str]]) -> list[str]:
    """The table, one line a figure."""
    return [
        f"| | {' | '.join(cells)} |",
        "| --- |" + " ---: |" * len(cells),
        *(f"| {' | '.join(row)} |" for row in zip(HEADINGS, *cells.values(), strict=True)),
    ]


def _widths(summary: dict[str, Any]) -> str:
    layers = summary["report"]["layers"]
    return ", ".join(f"{name} {width['before']}→{width['after']}" for name, width in layers.items())


def _goals(
    options: argparse.Namespace, summary: dict[str, Any], latency: dict[str, Any], memory: dict[str, Any]
) -> list[Goal]:
    del memory
    goals = []
    if options.min_test_accuracy is not None:
        accuracy = summary["accuracy"]["test"]["compact"]
        goals.append(Goal("test accuracy", accuracy, options.min_test_accuracy, at_least=True))
    for key in ("macs", "parameters"):
        bound = getattr(options, f"max_{key}_share")
        if bound is not None:
            goals.append(
                Goal(f"share of {key}", summary[key]["compact"] / summary[key]["dense"], bound, at_least=False)
            )
    if options.max_latency_ratio is not None:
        high = latency["ratio"]["high"]
        goals.append(Goal("upper end of the latency ratio", high, options.max_latency_ratio, at_least=False))
    return goals


def _table(title: str, cells: dict[str, list[str]]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in cells:
        table.add_column(name, justify="right", no_wrap=True)
    for heading, *row in zip(HEADINGS, *cells.values(), strict=True):
        table.add_row(heading, *row)
    return table


def _verdict(latency: dict[str, Any]) -> str:
    runs = latency["settings"]["runs"]
    return f"compact is {latency['verdict']} (95% interval of the latency ratio over {runs} processes)"


def title(summary: dict[str, Any], run: Path) -> str:
    """What was trained on what; a folder of images goes by its own name."""
    data = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))["data"]
    dataset = data["dir"] if data["name"] == "folder" else data["name"]
    return f"{summary['model']} on {Path(dataset).name}"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="run directory; ONNX files and reports go there too")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    parser.add_argument("--insert", type=Path, help="put the table between the marks of this document")
    parser.add_argument("--min-test-accuracy", type=float)
    parser.add_argument("--max-macs-share", type=float)
    parser.add_argument("--max-parameters-share", type=float)
    parser.add_argument("--max-latency-ratio", type=float)
    parser.add_argument("train", nargs="*", help="after --: options handed to compress train")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
