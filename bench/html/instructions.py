"""Instructions on the page: a bar for each model, with the difference of the outputs from this machine's."""

from bench.html.parts import Bar, Panel, Part, Tile, percent
from bench.report import InstructionsReport, InstructionsResult, results_of


def instructions_content(report: InstructionsReport) -> tuple[list[Tile], list[Panel]]:
    """Counts of single inferences, on one thread."""
    figures, parity = report.model.instructions, report.model.parity
    tiles = [
        Tile(
            label="instructions per inference",
            value=f"{figures.per_inference:,}",
            note=f"counts differ by {figures.spread:.2%}",
        ),
        Tile(
            label="difference of outputs",
            value=f"{parity.max_abs_error:.3g}",
            note=f"{parity.arithmetic}, output {parity.output}, largest value {parity.largest_value:.3g}",
        ),
    ]
    if report.ratio is not None:
        tiles.insert(1, Tile(label="instructions over the baseline's", value=f"{report.ratio:.3f}"))
    results = results_of(report)
    full = max(result.instructions.high for _, result in results)
    panel = Panel(
        kind="bars",
        title=f"Instructions per inference on {report.device}",
        caption="one thread, median of all counts, the same on a busy machine: an emulator counts them.",
        data=[_bar(kind, result, full) for kind, result in results],
        wide=True,
    )
    return tiles, [panel]


def _bar(kind: str, result: InstructionsResult, full: int) -> Bar:
    figures = result.instructions
    part = Part(kind, percent(figures.per_inference, full), f"{figures.low:,} to {figures.high:,}")
    return Bar(
        label=kind, parts=(part,), value=f"{figures.per_inference:,}", note=f"{figures.low:,} to {figures.high:,}"
    )
