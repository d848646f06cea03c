from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.compare import Named, compare
from bench.errors import BenchError
from bench.gate import GateReport
from bench.report import LatencyReport, MemoryReport


@pytest.fixture
def timed(generous: GateReport) -> LatencyReport:
    assert generous.latency is not None
    return generous.latency


@pytest.fixture
def weighed(generous: GateReport) -> MemoryReport:
    assert generous.memory is not None
    return generous.memory


def scaled(report: LatencyReport, factor: float, *, baseline: float | None = None, seed: int = 0) -> LatencyReport:
    """Its model's runs at `factor` milliseconds, its baseline's at `baseline`, with 1 % of luck for each process."""
    rng = np.random.default_rng(seed)

    def result(old, level: float):
        luck = np.exp(rng.normal(0, 0.01, len(old.latency.runs)))
        runs = tuple(
            replace(run, samples_ns=(round(1e6 * level * each),) * 5)
            for run, each in zip(old.latency.runs, luck, strict=True)
        )
        return replace(old, latency=replace(old.latency, runs=runs, p50_ms=level))

    other = None if baseline is None else result(report.baseline, baseline)
    return replace(report, model=result(report.model, factor), baseline=other)


def test_the_ratio_is_to_the_first_with_its_interval_over_the_processes(timed: LatencyReport) -> None:
    found = compare([Named(name="a", report=scaled(timed, 2.0)), Named(name="b", report=scaled(timed, 3.0, seed=1))])
    first, second = found.rows
    assert (found.figure, found.unit) == ("latency p50", "ms")
    assert (first.value, second.value) == (2.0, 3.0)
    assert (first.first, first.ratio, first.low) == (True, None, None)
    assert second.ratio == pytest.approx(1.5, rel=0.02)
    assert second.low is not None
    assert second.high is not None
    assert 1.45 < second.low < second.ratio < second.high < 1.55
    assert not second.through_baseline
    assert "the sessions were not interleaved" in found.notes[-1]


def test_the_same_baseline_in_both_sessions_takes_the_machines_change_out(timed: LatencyReport) -> None:
    monday = scaled(timed, 2.0, baseline=4.0)
    tuesday = scaled(timed, 3.0, baseline=6.0, seed=1)  # half as slow again, and so is the model
    found = compare([Named(name="monday", report=monday), Named(name="tuesday", report=tuesday)])
    row = found.rows[1]
    assert row.through_baseline
    assert row.ratio == pytest.approx(1.0, rel=0.03)
    assert row.low is not None
    assert row.high is not None
    assert row.low < 1 < row.high
    assert any(text.startswith("both sessions measured the same baseline, which took 1.5") for text in found.notes)
    other = replace(tuesday, baseline=replace(tuesday.baseline, file=replace(tuesday.baseline.file, sha256="other")))
    assert not compare([Named(name="a", report=monday), Named(name="b", report=other)]).rows[1].through_baseline
    smaller = tuple(replace(value, shape=(1, 1, 4, 4)) for value in tuesday.baseline.inputs)
    less = replace(tuesday, baseline=replace(tuesday.baseline, inputs=smaller))  # smaller pictures are less work
    assert not compare([Named(name="a", report=monday), Named(name="b", report=less)]).rows[1].through_baseline


def test_what_differs_is_refused_in_words_all_at_once(timed: LatencyReport) -> None:
    host = replace(timed.host, cpu_model="Cortex-A72", architecture="aarch64", emulated=True)
    other = replace(timed, host=host, device="arm64:cortex-a72", settings=replace(timed.settings, threads=4))
    with pytest.raises(BenchError) as refusal:
        compare([Named(name="a.json", report=timed), Named(name="b.json", report=other)])
    lines = str(refusal.value).split("\n  ")
    assert lines[0] == "these reports cannot be compared"
    assert lines[1:] == [
        "different emulated or native: native in a.json, emulated in b.json",
        "different devices: cpu in a.json, arm64:cortex-a72 in b.json",
        f"different CPUs: {timed.host.cpu_model} in a.json, Cortex-A72 in b.json",
        f"different architectures: {timed.host.architecture} in a.json, aarch64 in b.json",
        "different threads: 1 in a.json, 4 in b.json",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_model": "another"},
        {"architecture": "another"},
        {"isa": ("avx9",)},
        {"logical_cores": 99},
        {"usable_cores": 99},
        {"governor": "slowest"},
        {"emulated": True},
    ],
)
def test_every_fact_of_the_host_that_changes_speed_counts(timed: LatencyReport, change) -> None:
    other = replace(timed, host=replace(timed.host, **change))
    with pytest.raises(BenchError, match=r"cannot be compared\n  different [^\n]*$"):
        compare([Named(name="a", report=timed), Named(name="b", report=other)])


def test_another_batch_is_refused_however_it_was_given(timed: LatencyReport) -> None:
    (value,) = timed.model.inputs
    model = replace(timed.model, inputs=(replace(value, shape=(8, *value.shape[1:])),))
    with pytest.raises(BenchError, match="different batches: 1 in a, 8 in b"):
        compare([Named(name="a", report=timed), Named(name="b", report=replace(timed, model=model))])


def test_latency_and_memory_have_nothing_in_common(timed: LatencyReport, weighed: MemoryReport) -> None:
    with pytest.raises(BenchError, match=r"compared\n  different measures: latency in a, memory in b$"):
        compare([Named(name="a", report=timed), Named(name="b", report=weighed)])
    with pytest.raises(BenchError, match="two reports or more"):
        compare([Named(name="a", report=timed)])


def test_another_onnxruntime_is_compared_and_told(timed: LatencyReport) -> None:
    other = replace(timed, host=replace(timed.host, onnxruntime="1.20.1"))
    found = compare([Named(name="a", report=timed), Named(name="b", report=other)])
    assert f"onnxruntime differs, and is in the ratio: {timed.host.onnxruntime} in a, 1.20.1 in b" in found.notes


def test_memory_of_few_processes_has_a_ratio_without_an_interval(weighed: MemoryReport) -> None:
    found = compare([Named(name="a", report=weighed), Named(name="b", report=weighed)])
    row = found.rows[1]
    assert row.ratio == pytest.approx(1.0)
    assert (row.low, row.high) == (None, None)
    assert row.value == weighed.model.memory.peak_over_bare_bytes


def test_the_command_prints_a_table_or_refuses(timed, tmp_path: Path, bench_command, capsys) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, report in zip(paths, (timed, timed, replace(timed, device="ssh://pi")), strict=True):
        report.save(path)
    assert bench_command("compare", *paths[:2]) == 0
    printed = capsys.readouterr()
    assert "1.000 (through the baseline)" in printed.out
    assert "note: the sessions were not interleaved" in printed.err
    assert bench_command("compare", *paths) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"bench: these reports cannot be compared\n  different devices: cpu in {paths[0]}, ssh://pi in {paths[2]}\n"
    )


def test_peaks_of_different_meanings_are_refused(weighed: MemoryReport) -> None:
    runs = tuple(replace(run, method="VmHWM") for run in weighed.model.memory.runs)
    other = replace(weighed, model=replace(weighed.model, memory=replace(weighed.model.memory, runs=runs)))
    with pytest.raises(BenchError, match=r"different ways to measure memory: \S+ in a, VmHWM in b"):
        compare([Named(name="a", report=weighed), Named(name="b", report=other)])
