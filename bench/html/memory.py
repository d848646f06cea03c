"""Memory on the page: what is resident, in layers, and what the graph alone needs."""

from collections.abc import Sequence

from bench.html.parts import KIB, MIB, Bar, Panel, Part, Tile, percent, percents
from bench.report import MemoryReport, MemoryResult, results_of


def memory_content(report: MemoryReport) -> tuple[list[Tile], list[Panel]]:
    """Resident memory in layers, and what the graph alone needs."""
    results = results_of(report)
    figures, file = report.model.memory, report.model.file
    ratios = report.ratios
    tiles = [
        Tile(
            label="peak resident memory",
            value=f"{figures.peak_rss_bytes / MIB:.2f} MiB",
            note=f"spread of {report.settings.runs} processes {figures.spread_bytes / MIB:.2f} MiB",
        ),
        Tile(
            label="over the bare runtime",
            value=f"{figures.peak_over_bare_bytes / MIB:.2f} MiB",
            note=_of_baseline(None if ratios is None else ratios.peak_over_bare_bytes),
        ),
        Tile(
            label="file",
            value=f"{file.file_bytes / KIB:,.1f} KiB",
            note=_of_baseline(None if ratios is None else ratios.file_bytes),
        ),
    ]
    return tiles, [_resident(results), _static(results)]


def _of_baseline(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f} of the baseline's"


def _resident(results: Sequence[tuple[str, MemoryResult]]) -> Panel:
    full = max(result.memory.peak_rss_bytes for _, result in results)
    bars = []
    for kind, result in results:
        figures = result.memory
        inference = max(0, figures.peak_over_bare_bytes - figures.model_rss_bytes)
        model = figures.peak_over_bare_bytes - inference
        sizes = {"bare runtime": figures.bare_rss_bytes, "loaded model": model, "inference": inference}
        parts = tuple(
            Part(style, percent, f"{what}: {size / MIB:.2f} MiB")
            for style, percent, (what, size) in zip(
                ("bare", f"{kind} light", kind), percents(list(sizes.values()), full), sizes.items(), strict=True
            )
        )
        note = ", ".join(f"{what} {size / MIB:.2f}" for what, size in sizes.items())
        bars.append(Bar(label=kind, parts=parts, value=f"{figures.peak_rss_bytes / MIB:.2f} MiB", note=note))
    return Panel(
        kind="bars",
        title="Peak resident memory",
        caption="MiB during inference, median of the processes. Grey: Python, numpy and ONNX Runtime; pale: the loaded "
        "model; full: what inference adds.",
        data=bars,
    )


def _static(results: Sequence[tuple[str, MemoryResult]]) -> Panel:
    sizes = [
        (kind, what, size)
        for kind, result in results
        for what, size in (
            ("weights", result.static.weight_bytes),
            ("peak activations", result.static.peak_activation_bytes),
        )
    ]
    full = max([size for _, _, size in sizes if size is not None], default=0)
    bars = []
    for what in ("weights", "peak activations"):
        for kind, name, size in sizes:
            if name == what:
                shown = "unknown" if size is None else f"{size / KIB:,.1f} KiB"
                parts = () if size is None else (Part(kind, percent(size, full), f"{what}: {size:,} bytes"),)
                label = what if kind == "model" else f"{what}, {kind}"
                bars.append(Bar(label=label, parts=parts, value=shown))
    reasons = {result.static.unknown_because for _, result in results} - {None}
    because = "".join(f" {reason}." for reason in sorted(map(str, reasons)))
    return Panel(
        kind="bars",
        title="By the graph alone",
        caption="KiB of all weights, and of the activations alive at once in the best order of execution that was "
        f"found: what a runtime without overhead needs.{because}",
        data=bars,
    )
