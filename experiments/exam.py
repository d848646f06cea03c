"""The exam of surgery: real networks, half of whose channels are dead, masked against compact.

    python experiments/exam.py --suite torchvision
    python experiments/exam.py --suite timm --models resnetv2_18 dpn68 --case a --again
    python experiments/exam.py --suite torchvision --suite timm --markdown docs/results/surgery-exam.md
    python experiments/exam.py --table-only --markdown docs/results/surgery-exam.md

Each network runs in a process of its own with a limit of time and of memory, so that a crash is a row of the table and
not its end. Rows are kept as JSON lines under ``--out``; what is there is not run again, unless ``--again`` says so.
The table and the document are made from the rows of the networks asked for. The exit code is 1 where a network fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from exam_rows import CASES, Row
from exam_tables import document, failures, line

if TYPE_CHECKING:
    from exam_networks import Network

DEFAULT_OUT = Path("runs/exam")

WALL_PER_CPU_SECOND = 10
"""Processor time is limited, so that a busy machine fails no network; a process that hangs is ended after this much."""


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, print the rows, write the document; 1 where a network fails."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    if options.child:
        return _child(options)
    from exam_networks import SUITES, find

    chosen: list[Network] = []
    for suite in options.suite or SUITES:
        try:
            chosen += [find(suite, name) for name in options.models] if options.models else SUITES[suite]()
        except KeyError as error:
            print(f"{error.args[0]}; names: {', '.join(n.name for n in SUITES[suite]())}", file=sys.stderr)
            return 2
    book = _Book(options.out)
    cases = options.case or list(CASES)
    todo = [
        (network, missing)
        for network in chosen
        if (missing := [c for c in cases if options.again or not book.has(network.suite, network.name, c)])
        and not options.table_only
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda job: _run(job[0], job[1], options), todo)
        for done, found in enumerate(results, start=1):
            for row in found:
                book.add(row)
                print(f"[{done}/{len(todo)}] {line(row)}", file=sys.stderr, flush=True)
    rows = [book.row(network, case) for network in chosen for case in cases]
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(document(rows, _command(arguments)), encoding="utf-8")
    bad = failures(rows)
    print(f"{len(rows)} rows, {len(bad)} failed" + "".join(f"\n  {line(row)}" for row in bad))
    return 1 if bad else 0


class _Book:
    """The rows on disk, one JSON line each; of several for the same network and case the last one counts."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rows.jsonl"
        self.lock = Lock()
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows = {(row.suite, row.name, row.case): row for row in (Row(**json.loads(text)) for text in lines)}

    def has(self, suite: str, name: str, case: str) -> bool:
        """Whether there is a row of a network that was run."""
        row = self.rows.get((suite, name, case))
        return row is not None and row.status != "not run"

    def row(self, network: Network, case: str) -> Row:
        """The row of a network, or one that says that there is none."""
        none = Row(network.suite, network.name, network.family, case, "not run", "not run")
        return self.rows.get((network.suite, network.name, case), none)

    def add(self, row: Row) -> None:
        """Keep a row; it is on disk when this returns."""
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            self.rows[row.suite, row.name, row.case] = row
            file.write(json.dumps(asdict(row)) + "\n")


def _run(network: Network, cases: list[str], options: argparse.Namespace) -> list[Row]:
    """The rows of one network, from a process of its own; what that did not tell is told for it."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "rows.jsonl"
        command = [
            *(sys.executable, __file__, "--child", str(told), "--suite", network.suite, "--models", network.name),
            *(argument for case in cases for argument in ("--case", case)),
            *("--time-limit", str(options.time_limit)),
            *("--max-parameters", str(options.max_parameters), "--memory-gib", str(options.memory_gib)),
            *(["--prefer", options.prefer] if options.prefer else []),
            *([] if options.onnx else ["--no-onnx"]),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        try:
            process = subprocess.run(
                command,
                timeout=WALL_PER_CPU_SECOND * options.time_limit,
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            code, words = process.returncode, process.stderr.strip().splitlines()[-1:]
        except subprocess.TimeoutExpired:
            code, words = -signal.SIGXCPU, []
        lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    rows = [Row(**json.loads(text)) for text in lines]
    for case in cases[len(rows) :]:
        if code == -signal.SIGXCPU:
            status, note = "time", f"longer than {options.time_limit} s"
        else:
            status, note = "crashed", f"exit code {code}: {' '.join(words)}"
        rows.append(Row(network.suite, network.name, network.family, case, status, note[:300]))
    return rows


def _child(options: argparse.Namespace) -> int:
    """Run the cases of one network here; each row is written as soon as it is known."""
    limit = int(options.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (options.time_limit, options.time_limit + 10))
    from exam_networks import find

    network = find(options.suite[0], options.models[0])
    parameters = network.parameters()
    for case in options.case:
        if parameters > options.max_parameters:
            row = Row(network.suite, network.name, network.family, case, "not run", f"{parameters:,} parameters")
        else:
            from exam_check import examine

            row = examine(network, case, prefer=options.prefer, onnx=options.onnx)
        with options.child.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
    return 0


def _command(arguments: list[str]) -> str:
    shown = [word for word in arguments if word != "--again"]
    return shlex.join(["python", "experiments/exam.py", *shown])


def _options(arguments: list[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", action="append", choices=("torchvision", "timm"), help="both, if not given")
    parser.add_argument("--models", nargs="+", metavar="NAME", default=[], help="only these; of timm, any model")
    parser.add_argument("--case", action="append", choices=list(CASES), help="both, if not given")
    parser.add_argument("--prefer", choices=("class", "graph", "smallest"), help="handed to compact, if it knows it")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="without export and ONNX Runtime")
    parser.add_argument("--again", action="store_true", help="run what has a row already, too")
    parser.add_argument("--table-only", action="store_true", help="run nothing: tell of the rows that there are")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--time-limit", type=int, default=300, metavar="SECONDS", help="processor time of one network")
    parser.add_argument("--memory-gib", type=float, default=8.0, help="of one process")
    parser.add_argument("--max-parameters", type=float, default=150e6, help="larger networks are listed, not run")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where rows are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the document here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
