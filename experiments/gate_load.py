"""Many runs of ``bench gate`` in one process: what they leave behind.

    python experiments/gate_load.py --model runs/demo/model.onnx --baseline runs/demo/model-dense.onnx \
        --markdown docs/results/gate-load.md

Every run is the whole command: it reads a budget, starts workers, judges, and writes JUnit XML, Markdown and JSON. Each
measures the memory of one process, and every twentieth latency beside a baseline, too, with few samples. Looked at are
child processes, files in a folder for temporary ones that is this run's own, files beside the reports, open files and
this process's resident memory. Ends with code 1 if anything is left or grows. Not counted: ``.ses``, 51 bytes, which
ONNX Runtime 1.31 itself writes into the folder for temporary files when it is imported, the same one each time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.cli import main as bench

LATENCY_EVERY = 20
WARM_SHARE = 0.1  # of the runs: caches of Python and of the allocator fill first
GROWTH_LIMIT = 1024.0
"""Bytes a run, by the fitted line: a report of these runs is larger, and one that is kept would show."""

MEASURE = "[measure]\nruns = 6\nsamples = 6\nmin_seconds = 0\nmemory_runs = 1\ntimeout_s = 36000\n"
FILE = "[file]\nbytes = 1e12\n"
MEMORY = "[memory]\npeak_bytes = 1e12\nactivation_bytes = 1e12\n"
LATENCY = "[latency]\nratio = 1e3\np99_ms = 1e6\n"
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class State:
    """What is there after a run."""

    run: int
    seconds: float
    resident_bytes: int
    open_files: int
    children: int
    temporary_files: int
    other_files: int


def resident_bytes() -> int:
    """Of this process."""
    with Path("/proc/self/smaps_rollup").open() as lines:
        return next(int(line.split()[1]) * KIB for line in lines if line.startswith("Rss:"))


def children() -> int:
    """Child processes of this one, zombies included."""
    return sum(len(task.read_text().split()) for task in Path("/proc/self/task").glob("*/children"))


def gate_once(model: Path, baseline: Path, folder: Path, *, latency: bool, memory: bool = True) -> None:
    """The command, from words to files.

    Raises:
        RuntimeError: It ended with another code than 0.
    """
    budget = folder / "budget.toml"
    budget.write_text(MEASURE + FILE + (MEMORY if memory else "") + (LATENCY if latency else ""))
    sys.argv = ["bench", "gate", str(model), "--budget", str(budget)]
    sys.argv += ["--baseline", str(baseline)] if latency else []
    for option, name in (("--junit", "gate.xml"), ("--markdown", "gate.md"), ("--json", "gate.json")):
        sys.argv += [option, str(folder / name)]
    printed = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            bench()
        except SystemExit as end:
            code = int(end.code or 0)
    if code != 0:
        raise RuntimeError(f"bench gate ended with {code}: {printed.getvalue()}")


RUNTIME_FILES = {".ses"}
EXPECTED = {"budget.toml", "gate.xml", "gate.md", "gate.json"}


def gate_often(
    model: Path, baseline: Path, runs: int, latency_every: int = LATENCY_EVERY, memory_every: int = 1
) -> Iterator[State]:
    """Gate `runs` times, the first with all measures, and look round after each."""
    start, own = time.monotonic(), children()  # a runner of tests may have some
    with tempfile.TemporaryDirectory() as root:
        temporary, reports = Path(root, "tmp"), Path(root, "reports")
        temporary.mkdir()
        reports.mkdir()
        before, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), str(temporary)
        tempfile.tempdir = None  # it is looked up anew
        try:
            for run in range(1, runs + 1):
                gate_once(
                    model,
                    baseline,
                    reports,
                    latency=(run - 1) % latency_every == 0,
                    memory=(run - 1) % memory_every == 0,
                )
                gc.collect()
                yield State(
                    run=run,
                    seconds=time.monotonic() - start,
                    resident_bytes=resident_bytes(),
                    open_files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
                    children=children() - own,
                    temporary_files=len({path.name for path in temporary.rglob("*")} - RUNTIME_FILES),
                    other_files=len({path.name for path in reports.iterdir()} - EXPECTED),
                )
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before
            tempfile.tempdir = None


def growth(states: list[State]) -> float:
    """Bytes that the resident memory grows by with each run, by least squares after the first runs."""
    kept = states[int(len(states) * WARM_SHARE) :]
    return float(np.polyfit([state.run for state in kept], [state.resident_bytes for state in kept], 1)[0])


def faults(states: list[State]) -> list[str]:
    """What was left, or grew."""
    first, last = states[0], states[-1]
    found = [
        f"{name}: {max(counts)}"
        for name, counts in (
            ("child processes", [state.children for state in states]),
            ("temporary files", [state.temporary_files for state in states]),
            ("files beside the reports", [state.other_files for state in states]),
        )
        if max(counts) > 0
    ]
    if last.open_files > first.open_files:
        found.append(f"open files: {first.open_files}, then {last.open_files}")
    if growth(states) > GROWTH_LIMIT:
        found.append(f"memory grows by {growth(states):.0f} bytes a run, more than {GROWTH_LIMIT:.0f}")
    return found


HEADINGS = ("runs", "seconds", "resident MiB", "open files", "child processes", "temporary files")


def row(state: State) -> str:
    """A line of the table."""
    cells = (
        f"{state.run:,}",
        f"{state.seconds:.0f}",
        f"{state.resident_bytes / MIB:.2f}",
        *(f"{count}" for count in (state.open_files, state.children, state.temporary_files)),
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run, print a line for every twentieth part, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    lines = ["| " + " | ".join(HEADINGS) + " |", "| ---: " * len(HEADINGS) + "|"]
    print("\n".join(lines), flush=True)
    states: list[State] = []
    with contextlib.suppress(KeyboardInterrupt):  # what there is until then is told
        for state in gate_often(given.model, given.baseline, given.runs):
            states.append(state)
            if state.run == 1 or state.run % max(1, given.runs // 20) == 0:
                lines.append(row(state))
                print(lines[-1], flush=True)
    if len(states) < 2:
        sys.exit("stopped before the second run: nothing to tell")
    left = faults(states)
    verdict = f"Memory: {growth(states):+.0f} bytes a run. " + (
        "Left: " + "; ".join(left) if left else "Nothing is left."
    )
    print(verdict)
    if given.markdown is not None:
        command = (
            f"    python experiments/gate_load.py --model {given.model} --baseline {given.baseline} --runs {given.runs}"
        )
        about = [line.strip() for line in (__doc__ or "").split("\n\n")[-1].splitlines()]
        page = [f"# {len(states):,} runs of bench gate", "", "Printed by:", "", command, "", *about, ""]
        given.markdown.write_text("\n".join([*page, *lines, "", verdict, ""]), encoding="utf-8")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
