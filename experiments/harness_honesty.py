"""Whether the figures of ``bench`` can be trusted: what it says where the truth is known.

    python experiments/harness_honesty.py --out runs/harness-honesty --markdown docs/results/harness-honesty.md
    python experiments/harness_honesty.py --out runs/harness-honesty --seconds 100     # in pieces: call again

Models are chains of equal 3x3 convolutions. Every row is one ``bench latency`` (or ``bench memory``) with default
settings. ``same``: a model of 20 convolutions as its own baseline; the 95 % interval of the ratio should hold 1 in 19
of 20 rows. ``more``: 21 convolutions against 20, exactly 5 % more work; the verdict should be ``slower``. Each of them
is done on a quiet machine and beside a process that keeps one core busy (the experiment starts it, unless another one
is there).

``loop``: in each row one process, in which the harness's samples and a plain loop around ``session.run`` take turns of
some milliseconds, on a model of about 0.1 ms; the ratio of their medians, harness over loop, with its interval over all
rows. ``loop-beside``: the same with the harness measuring a baseline of 20 convolutions too.

``memory``: how far the figures of 20 measurements of the same two models lie apart.

Rows are kept in ``rows.jsonl`` and never done again; what other processes took of the cores is measured and written
beside each. A row is one of the quiet machine if that is at most 0.2 cores, one beside a busy core if it is 0.8 or
more; others are set aside, and their number is told. The choice knows nothing of the result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from page import Page, about

import bench
from bench.stats import Ratio, ratio_of_medians

ROWS = 20
MAX_TRIES = 3  # as many rows of a case as this for each that is wanted: then the machine is never as it should be
QUIET_CORES = (0.0, 0.2)
BUSY_CORES = (0.8, float("inf"))
CONVOLUTIONS, FEW_CONVOLUTIONS = 20, 5
WAIT_FOR_QUIET_S = 20.0

Row = dict[str, Any]


def make_convolutions(path: Path, depth: int, *, width: int = 16, size: int = 16) -> Path:
    """`depth` convolutions of `width` channels on images of `size` x `size`, then their mean over each channel."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(depth):
        kernel = rng.standard_normal((width, width, 3, 3)).astype(np.float32) / (3 * width**0.5)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"], pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{depth}"], ["y"]))
    image = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, width, size, size])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width, 1, 1])
    graph = helper.make_graph(nodes, "convolutions", [image], [result], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


# The machine ---------------------------------------------------------------------------------------------------------


def busy_seconds() -> float:
    """Core-seconds that this machine was busy since it started."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


class Others:
    """Cores that other processes take, from now to `cores()`; children count as others until they are waited for."""

    def __init__(self) -> None:
        self.start = time.monotonic(), busy_seconds(), sum(os.times()[:4])

    def cores(self) -> float:
        """Their mean number."""
        clock, busy, own = self.start
        others = busy_seconds() - busy - (sum(os.times()[:4]) - own)
        return max(0.0, others / (time.monotonic() - clock))


def cores_of_others(seconds: float = 0.5) -> float:
    """Cores that other processes take now."""
    others = Others()
    time.sleep(seconds)
    return others.cores()


@contextmanager
def quiet_machine() -> Iterator[None]:
    """Wait until nothing else runs, for some time at most: the row itself says how it was."""
    deadline = time.monotonic() + WAIT_FOR_QUIET_S
    while cores_of_others() > QUIET_CORES[1] and time.monotonic() < deadline:
        pass
    yield


@contextmanager
def one_core_busy() -> Iterator[None]:
    """Keep one core busy, unless somebody does."""
    if cores_of_others() > BUSY_CORES[0] / 2:
        yield
        return
    # It ends with this process, however that ends.
    spinner = subprocess.Popen([sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass"])
    try:
        yield
    finally:
        spinner.kill()
        spinner.wait()


# Rows ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """The files, made when they are first needed; and turns, since what is loaded first lies elsewhere in memory."""

    folder: Path
    turns: Iterator[int]

    def convolutions(self, depth: int, **sizes: int) -> Path:
        """A chain of convolutions."""
        path = self.folder / f"convolutions-{'-'.join(map(str, (depth, *sizes.values())))}.onnx"
        return path if path.exists() else make_convolutions(path, depth, **sizes)


def compared(depth: int) -> Callable[[Models], Row]:
    """A row: a model of `depth` convolutions with that of 20 as its baseline."""

    def row(models: Models) -> Row:
        report = bench.latency(models.convolutions(depth), models.convolutions(CONVOLUTIONS))
        assert report.ratio is not None
        return {
            "ratio": [report.ratio.value, report.ratio.low, report.ratio.high],
            "p50_ms": report.model.latency.p50_ms,
            "warnings": len(report.warnings),
        }

    return row


def beside_loop(baseline: bool) -> Callable[[Models], Row]:
    """A row: medians of the harness and of a plain loop, in nanoseconds, in turn in one process."""

    def row(models: Models) -> Row:
        paths = [models.convolutions(FEW_CONVOLUTIONS)] + [models.convolutions(CONVOLUTIONS)] * baseline
        turn = str(next(models.turns))
        words = [sys.executable, str(Path(__file__).with_name("loop_beside_harness.py")), turn, *map(str, paths)]
        samples = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        return {f"{who}_ns": float(np.median(samples[who])) for who in ("harness", "loop")}

    return row


def memory_row(models: Models) -> Row:
    """A row: memory of a small model and of one with 9 MiB of weights."""
    report = bench.memory(models.convolutions(4, width=256, size=32), models.convolutions(CONVOLUTIONS))
    assert report.baseline is not None
    return {
        f"{name}_{figure}": getattr(result.memory, figure)
        for name, result in (("large", report.model), ("small", report.baseline))
        for figure in ("peak_rss_bytes", "peak_over_bare_bytes", "model_rss_bytes")
    }


@dataclass(frozen=True)
class Case:
    """Rows of one kind on one state of the machine; the state is what was measured, whatever was intended.

    Attributes:
        kind: A key of `KINDS`.
        busy: Beside a busy core.
    """

    kind: str
    busy: bool = False

    @property
    def cores(self) -> tuple[float, float]:
        """What others may take of the cores for the row to count."""
        return BUSY_CORES if self.busy else QUIET_CORES

    def counts(self, row: Row) -> bool:
        """Whether a row is one of this case."""
        low, high = self.cores
        return bool(row["kind"] == self.kind and low <= row["others_cores"] <= high)


KINDS = {
    "loop": beside_loop(baseline=False),
    "loop-beside": beside_loop(baseline=True),
    "same": compared(CONVOLUTIONS),
    "more": compared(CONVOLUTIONS + 1),
    "memory": memory_row,
}

CASES = {
    **{kind: Case(kind) for kind in KINDS},
    **{f"{kind}-busy": Case(kind, busy=True) for kind in ("same", "more", "memory")},
}


def read_rows(path: Path) -> list[Row]:
    """All rows so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(out: Path, names: list[str], deadline: float) -> None:
    """Add rows until every case has its number of rows that count, or the time or the patience is over."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"
    models = Models(out, itertools.count(len(read_rows(path))))
    for name in names:
        case, tries = CASES[name], 0
        rows = read_rows(path)
        while sum(map(case.counts, rows)) < ROWS and tries < MAX_TRIES * ROWS and time.monotonic() < deadline:
            with one_core_busy() if case.busy else quiet_machine():
                others = Others()
                row = {"kind": case.kind, **KINDS[case.kind](models)}
                row["others_cores"] = round(others.cores(), 3)
            tries += 1
            rows.append(row)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


# The page ------------------------------------------------------------------------------------------------------------


def cores(rows: list[Row]) -> str:
    """What others took, smallest to largest."""
    taken = [row["others_cores"] for row in rows]
    return f"{min(taken):.2f} - {max(taken):.2f}"


def comparison_cells(name: str, rows: list[Row]) -> list[str]:
    """A line of the first table."""
    ratios = [Ratio(value=value, low=low, high=high) for value, low, high in (row["ratio"] for row in rows)]
    verdicts = [ratio.verdict for ratio in ratios]
    right = "not distinguishable" if name.startswith("same") else "slower"
    width = float(np.median([(ratio.high - ratio.low) / 2 / ratio.value for ratio in ratios]))
    return [
        "the same model" if name.startswith("same") else "5 % more work",
        "one core busy" if CASES[name].busy else "quiet",
        f"**{verdicts.count(right)} of {len(rows)}**",
        f"{np.median([ratio.value for ratio in ratios]):.4f}",
        f"+-{width:.1%}",
        cores(rows),
    ]


def every_cells(place: int, row: Row) -> list[str]:
    """A line of a table of every row."""
    value, low, high = row["ratio"]
    return [str(place), f"{value:.4f}", f"{low:.4f} - {high:.4f}", f"{row['p50_ms']:.3f}", f"{row['others_cores']:.2f}"]


def loop_cells(name: str, rows: list[Row]) -> list[str]:
    """A line of the second table."""
    ratio = ratio_of_medians([[row["harness_ns"]] for row in rows], [[row["loop_ns"]] for row in rows])
    harness, loop = (float(np.median([row[key] for row in rows])) / 1e6 for key in ("harness_ns", "loop_ns"))
    return [
        "beside a baseline" if name == "loop-beside" else "alone",
        str(len(rows)),
        f"{harness:.4f}",
        f"{loop:.4f}",
        f"**{ratio.value:.4f}** [{ratio.low:.4f}, {ratio.high:.4f}]",
        cores(rows),
    ]


def memory_cells(name: str, rows: list[Row]) -> Iterator[list[str]]:
    """Lines of the third table."""
    for key in (key for key in rows[0] if key.endswith("_bytes")):
        values = [row[key] for row in rows]
        spread = (max(values) - min(values)) / float(np.median(values))
        size, _, figure = key.partition("_")
        machine = "one core busy" if CASES[name].busy else "quiet"
        yield [size, f"`{figure}`", machine, str(len(rows)), f"{np.median(values) / 2**20:.2f}", f"**{spread:.2%}**"]


def write_page(out: Path, markdown: Path | None) -> None:
    """Print the tables of all cases that have rows."""
    rows = read_rows(out / "rows.jsonl")
    counting = {name: [row for row in rows if case.counts(row)] for name, case in CASES.items()}
    aside = [row for row in rows if not any(case.counts(row) for case in CASES.values())]
    command = (
        "python experiments/harness_honesty.py --out runs/harness-honesty --markdown docs/results/harness-honesty.md"
    )
    told = f"{len(rows)} rows, {len(aside)} of them set aside."
    few = [f"{name} {len(found)}" for name, found in counting.items() if len(found) < ROWS]
    if few:
        told += f" **Not complete**: {ROWS} rows of each case are wanted, and there are of {', '.join(few)}."
    page = Page("Whether the figures of bench can be trusted", command, about(__doc__), told)
    there = [name for name in CASES if counting[name]]
    compare = [name for name in there if "ratio" in counting[name][0]]
    page.table(
        ("model against baseline", "machine", "right", "median ratio", "half-width", "cores of others"),
        (comparison_cells(name, counting[name]) for name in compare),
        "Is the verdict right?",
    )
    page.table(
        ("harness", "rows", "harness p50, ms", "loop p50, ms", "ratio [95 %]", "cores of others"),
        (loop_cells(name, counting[name]) for name in there if name.startswith("loop")),
        "What the harness adds to a plain loop",
    )
    page.table(
        ("model", "figure", "machine", "measurements", "median, MiB", "largest less smallest"),
        (cells for name in there if name.startswith("memory") for cells in memory_cells(name, counting[name])),
        "Do memory figures repeat?",
    )
    for name in compare:
        machine = "one core busy" if CASES[name].busy else "quiet"
        what = "The same model" if name.startswith("same") else "5 % more work"
        page.table(
            ("row", "ratio", "95 % interval", "p50, ms", "cores of others"),
            (every_cells(place, row) for place, row in enumerate(counting[name], 1)),
            f"{what}, {machine}: every row",
        )
    page.save(markdown)


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of rows and models")
    parser.add_argument("--cases", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further row after this time")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    arguments = parser.parse_args()
    names = [name for name in arguments.cases.split(",") if name]
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        parser.error(f"unknown cases: {', '.join(unknown)}; known: {', '.join(CASES)}")
    measure(arguments.out, names, time.monotonic() + arguments.seconds)
    write_page(arguments.out, arguments.markdown)


if __name__ == "__main__":
    main()
