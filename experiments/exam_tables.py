"""The document of the surgery exam, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from exam_rows import CASES, EXACT_REASONS, MIN_SHARE, Row

GROUPS = {
    ("torchvision", "a"): "torchvision, case (a)",
    ("torchvision", "b"): "torchvision, case (b)",
    ("timm", "a"): "timm, one small member of each family, case (a)",
    ("timm", "b"): "timm, case (b)",
}
"""(suite, case) -> heading, in the order of the document."""

COLUMNS = (
    "model",
    "px",
    "result",
    "dead",
    "removed",
    "carried",
    "kept",
    "missed",
    "removed of removable",
    "parameters",
    "MACs",
    "float64",
    "float32",
    "its rounding",
    "ONNX",
    "s",
)


def failures(rows: Iterable[Row]) -> list[Row]:
    """Rows that are no success; a network that is too large to run is none of them."""
    return [row for row in rows if row.status not in ("ok", "not run")]


def line(row: Row) -> str:
    """One row in one line, for the terminal."""
    head = f"{row.suite}:{row.name} ({row.case}) {row.status}"
    if row.status != "ok":
        return f"{head}: {row.note}"
    share = "" if row.share is None else f", {row.share:.1%} of the removable"
    errors = ", ".join(f"{precision} {error:.0e}" for precision, error in row.errors.items())
    return (
        f"{head}: {row.removed} of {row.dead} dead removed{share}, {row.carried} carried; "
        f"{errors}; {row.seconds['compact']:.1f} s"
    )


def document(rows: list[Row], command: str) -> str:
    """Everything, as Markdown."""
    parts = [_head(command), _summary(rows)]
    for (suite, case), heading in GROUPS.items():
        chosen = [row for row in rows if (row.suite, row.case) == (suite, case)]
        if chosen:
            parts.append("\n".join([f"## {heading}", "", *_table(chosen)]))
    parts += [_reasons(rows), _slowest(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(command: str) -> str:
    cases = "\n".join(f"- ({name}) {what}" for name, what in CASES.items())
    exact = "\n".join(f"- {name}" for name in EXACT_REASONS)
    return f"""# Exam of surgery

Printed by:

    {command}

Every network has random weights, BatchNorm statistics and scales, and shifts that are not zero. Half of its inner
channels are dead:

{cases}

Then each layer is rescaled on one batch, so that activations keep their size and the output depends on the input. The
masked network and the compact one are compared on images that the certificate of `compact` has not seen, two at a time,
at two input sizes where the network accepts a second one, in float64 and float32, and after export in ONNX Runtime.
Errors are the largest difference relative to the largest entry of the output, over all outputs. "Its rounding" is the
masked network in float32 against itself in float64; where four times that is more than 1e-5 it is what float32 is held
to.

What the columns count, in output channels of layers:

- dead: zeroed by the exam (case b: scales). Channels of the network's input and output are never among them; all others
  are, whatever the graph says of them.
- carried: stays as the one channel whose constant stands for those of all others in front of a zero-padded convolution.
- kept: stays for a reason that belongs to exactness:
{_indented(exact)}
- missed: stays for any other reason: an operation without a rule, a forward that holds sizes, a cut that came out
  uneven. A dead channel is *provably removable* unless it is carried or kept.
- removed of removable: removed / (removed + missed). Case (b) has no such column: a scale of zero silences a channel
  for what reads it there, and the channel itself may be needed elsewhere.
- s: processor seconds from the float32 model to the compact model, on one thread; both tracings, the type check and the
  certificate included.
"""


def _indented(text: str) -> str:
    return "\n".join("  " + part for part in text.splitlines())


def _summary(rows: list[Row]) -> str:
    ran = [row for row in rows if row.status != "not run"]
    bad = failures(rows)
    lines = ["## Result", ""]
    for suite in dict.fromkeys(row.suite for row in rows):
        networks = {row.name for row in ran if row.suite == suite}
        failed = {row.name for row in bad if row.suite == suite}
        wrong = {row.name for row in bad if row.suite == suite and row.status == "wrong"}
        left = sorted({row.name for row in rows if row.suite == suite and row.status == "not run"})
        lines.append(
            f"- {suite}: {len(networks)} networks, {len(failed)} failed, {len(wrong)} of them silently wrong"
            + (f"; not run: {', '.join(left)}." if left else ".")
        )
        shares = [row.share for row in ran if row.suite == suite and row.case == "a" and row.share is not None]
        if shares:
            reached = sum(share >= MIN_SHARE for share in shares)
            lines.append(
                f"  Case (a): at least {MIN_SHARE:.0%} of what is removable is removed in {reached} of "
                f"{len(shares)}; lowest {min(shares):.1%}."
            )
    for precision in ("float64", "float32", "onnx"):
        errors = [(row.errors[precision], row) for row in ran if precision in row.errors]
        if errors:
            error, row = max(errors, key=lambda pair: pair[0])
            lines.append(f"- Largest difference, {precision}: {error:.1e} ({row.name}, case {row.case}).")
    return "\n".join(lines)


def _table(rows: list[Row]) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
    return lines + [f"| {' | '.join(_cells(row))} |" for row in rows]


def _cells(row: Row) -> list[str]:
    if not row.params:
        return [row.name, "", row.status, *[""] * (len(COLUMNS) - 4), row.note.replace("|", "/")]
    status = row.status if row.status == "ok" else f"**{row.status}**"
    counted = row.case == "a"
    return [
        row.name,
        ", ".join(map(str, row.shapes)),
        f"{status}, graph" if row.module == "graph" else status,
        f"{row.dead:,}",
        f"{row.removed:,}",
        f"{row.carried:,}" if counted else "",
        f"{sum(row.kept.values()):,}" if counted else "",
        f"{sum(row.missed.values()):,}" if counted else "",
        "" if row.share is None else f"{row.share:.1%}",
        f"{row.params[0] / 1e6:.2f} → {row.params[1] / 1e6:.2f} M",
        f"{row.macs[0] / 1e6:.0f} → {row.macs[1] / 1e6:.0f} M",
        _error(row.errors.get("float64")),
        _error(row.errors.get("float32")),
        _error(row.rounding),
        _error(row.errors.get("onnx")),
        f"{row.seconds['compact']:.1f}",
    ]


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _reasons(rows: list[Row]) -> str:
    parts = []
    for title, what in (("Why channels were missed", "missed"), ("Why channels were kept", "kept")):
        channels: Counter[str] = Counter()
        networks: dict[str, list[str]] = {}
        for row in rows:
            for reason, number in getattr(row, what).items():
                channels[reason] += number
                networks.setdefault(reason, []).append(row.name)
        if channels:
            lines = [f"## {title}, case (a)", "", "| reason | channels | networks |", "| --- | ---: | --- |"]
            lines += [f"| {r} | {n:,} | {', '.join(networks[r])} |" for r, n in channels.most_common()]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _slowest(rows: list[Row]) -> str:
    timed = sorted((row for row in rows if "compact" in row.seconds), key=lambda row: -row.seconds["compact"])[:10]
    if not timed:
        return ""
    lines = [
        "## Slowest from model to compact model",
        "",
        "| model | case | parameters | tracing and labels | in all |",
    ]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    for row in timed:
        params = f"{row.params[0] / 1e6:.1f} M" if row.params else ""
        lines.append(
            f"| {row.name} | {row.case} | {params} | {row.seconds['graph']:.1f} s | {row.seconds['compact']:.1f} s |"
        )
    return "\n".join(lines)
