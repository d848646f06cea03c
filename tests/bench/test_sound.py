"""Reports that were edited by hand."""

import json
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.gate import GateReport, load_gate_report
from bench.html import Document
from bench.loading import load_report
from bench.report import (
    Instructions,
    InstructionSamples,
    InstructionsReport,
    InstructionsResult,
    LatencyReport,
    MemoryReport,
    Parity,
    ProfileReport,
)


@pytest.fixture
def changed(tmp_path: Path):
    """``changed(report, place, value)``: the file with one value replaced; `place` as ``model.latency.p50_ms``."""

    def write(report, place: str, value: object) -> Path:
        data = json.loads(report.to_json())
        *outer, last = place.split(".")
        spot = data
        for key in outer:
            spot = spot[int(key) if key.isdecimal() else key]
        spot[int(last) if last.isdecimal() else last] = value
        path = tmp_path / "edited.json"
        path.write_text(json.dumps(data))
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(BenchError) as error:
        load_report(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def of(documents: list[Document], kind: type):
    return next(document.report for document in documents if type(document.report) is kind)


@pytest.mark.parametrize(
    ("kind", "place", "value", "message"),
    [
        (LatencyReport, "model.latency.p50_ms", -5, "model.latency.p50_ms is -5"),
        (LatencyReport, "model.latency.p50_ms", 5e6, "model.latency.p50_ms is 5e+06, but its raw samples give 0."),
        (LatencyReport, "baseline.latency.p99_ms", 0.0, "baseline.latency.p99_ms is 0, but its raw samples give"),
        (LatencyReport, "model.latency.samples", 7, "model.latency.samples is 7, but its raw samples give 12"),
        (LatencyReport, "model.latency.p50_high_ms", 1e6, "model.latency.p50_high_ms is 1e+06, but"),
        (LatencyReport, "model.latency.runs.2.samples_ns.0", -1, "model.latency.runs[2].samples_ns[0] is -1, expected"),
        (LatencyReport, "model.latency.runs.2.samples_ns", [], "model.latency.runs[2].samples_ns is empty"),
        (LatencyReport, "model.latency.runs", [], "model.latency.runs is empty"),
        (LatencyReport, "ratio.value", 0.5e-9, "ratio.value is 5e-10, but its raw samples give"),
        (LatencyReport, "ratio", None, "ratio is None, but its raw samples give Ratio("),
        (LatencyReport, "verdict", "slower", "verdict is 'slower', but its raw samples give 'faster'"),
        (LatencyReport, "throughput.1.model.images_per_second", 1.0, "throughput[1].model.images_per_second is 1,"),
        (LatencyReport, "realtime.model.missed", 0, "realtime.model.missed is 0, but its raw samples give"),
        (LatencyReport, "realtime.model.runs.0.response_ns", [None] * 40, "its raw samples"),
        (MemoryReport, "model.memory.peak_rss_bytes", 1, "model.memory.peak_rss_bytes is 1, but its raw samples give"),
        (MemoryReport, "ratios.file_bytes", 9.0, "ratios.file_bytes is 9, but"),
        (ProfileReport, "model.profile.nodes.0.time_us", 0.25, "model.profile.nodes[0].time_us is 0.25, but"),
        (ProfileReport, "baseline.profile.p50_ms", 0.25, "baseline.profile.p50_ms is 0.25, but its raw samples give"),
        (ProfileReport, "model.profile.nodes", [], "its raw samples do not fit together"),
    ],
)
def test_a_figure_that_is_not_that_of_its_samples_is_refused(documents, changed, kind, place, value, message) -> None:
    path = changed(of(documents, kind), place, value)
    assert message in refusal(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(documents, changed, number: str) -> None:
    path = changed(of(documents, LatencyReport), "model.latency.p50_ms", 0.123456)
    path.write_text(path.read_text().replace("0.123456", number))
    assert refusal(path).startswith("model: latency: p50_ms: expected float, got ")


def test_counts_are_held_to_their_samples(documents, changed, tmp_path: Path) -> None:
    timed = of(documents, LatencyReport)
    parity = Parity(output="y", arithmetic="float32", max_abs_error=0.0, largest_value=1.0, tolerance=1e-4)
    runs = (InstructionSamples(counts=(90, 100, 110), marking=5),)
    figures = Instructions(per_inference=100, low=90, high=110, runs=runs)
    report = InstructionsReport(
        measure="instructions",
        created=timed.created,
        device="arm64",
        settings=timed.settings,
        host=timed.host,
        warnings=(),
        model=InstructionsResult(file=timed.model.file, inputs=timed.model.inputs, instructions=figures, parity=parity),
        baseline=None,
        ratio=None,
    )
    report.save(tmp_path / "counts.json")
    assert load_report(tmp_path / "counts.json") == report
    assert "model.instructions.per_inference is 50, but" in refusal(
        changed(report, "model.instructions.per_inference", 50)
    )


def test_an_interval_of_other_random_numbers_is_let_be(documents, changed) -> None:
    """The bootstrap's ends move by less than a quarter of the interval when its resamples are others."""
    report = of(documents, LatencyReport)
    moved = report.ratio.high + 0.1 * (report.ratio.high - report.ratio.low)
    assert load_report(changed(report, "ratio.high", moved)).ratio.high == moved


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("checks.0.unit", "parsecs", "checks[0].unit is 'parsecs', expected 'ratio'"),
        ("checks.0.name", "latency.speed", "checks[0].name is 'latency.speed', which is no limit of this bench"),
        ("checks.0.verdict", "perfect", "checks[0].verdict is 'perfect', but the figure and its limit give"),
        ("checks.0.limit", 1e-12, "but the figure and its limit give 'over'"),
        ("outcome", "within", "outcome is 'within', but its checks are 'over'"),
        ("latency.model.latency.p50_ms", 1e6, "latency: model.latency.p50_ms is 1e+06, but its raw samples give"),
    ],
)
def test_a_gate_that_contradicts_itself_is_refused(
    documents, changed, bench_command, capsys, place, value, message
) -> None:
    path = changed(of(documents, GateReport), place, value)
    with pytest.raises(BenchError):
        load_gate_report(path)
    assert bench_command("report", path, "--html", path.with_name("page.html")) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith(f"bench: {path}: ")
    assert told.count("\n") == 1
    assert not path.with_name("page.html").exists()
