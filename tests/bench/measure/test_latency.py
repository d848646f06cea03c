from dataclasses import replace

import pytest

from bench.errors import BenchError
from bench.loading import load_report
from bench.measure.latency import doubts, latency
from bench.measure.runs import call_again
from bench.report import LatencyReport

QUICK = {"runs": 6, "samples": 60, "min_seconds": 0.2}


@pytest.fixture(scope="module")
def report(make_convs) -> LatencyReport:
    """A model of 16 convolutions against one of a single one: sixteen times the work, on images of the same size."""
    large = make_convs("large.onnx", width=8, depth=16, size=32)
    return latency(large, make_convs("small.onnx", width=8, depth=1, size=32), **QUICK)


def test_a_much_larger_model_is_slower_and_the_report_says_all(report: LatencyReport, tmp_path) -> None:
    assert report.baseline is not None
    assert report.ratio is not None
    assert 1 < report.ratio.low <= report.ratio.value <= report.ratio.high
    assert report.verdict == "slower"
    for result in (report.model, report.baseline):
        times = result.latency
        assert 0 < times.min_ms <= times.p50_low_ms <= times.p50_ms <= times.p50_high_ms
        assert times.p50_ms <= times.p90_ms <= times.p99_ms
        assert times.min_ms <= times.mean_ms
        assert len(times.runs) == 6
        assert times.samples == sum(len(run.samples_ns) for run in times.runs) >= 60
        assert 0 <= times.outliers < times.samples
        assert (result.inputs[0].name, result.inputs[0].shape, result.inputs[0].dtype) == (
            "image",
            (1, 1, 32, 32),
            "float",
        )
    # The order of loading is turned from run to run: samples must not land in the other model's row.
    assert report.model.file.file_name == "large.onnx"
    assert report.model.latency.min_ms > report.baseline.latency.min_ms
    for ours, theirs in zip(report.model.latency.runs, report.baseline.latency.runs, strict=True):
        assert len(ours.samples_ns) == len(theirs.samples_ns) >= 10
        assert ours.loaded_first is not theirs.loaded_first
        assert min(ours.load_ns, ours.first_inference_ns, theirs.load_ns, theirs.first_inference_ns) > 0
    assert report.model.latency.cold_starts == report.baseline.latency.cold_starts == 3
    assert report.host.emulated is False
    assert report.settings.threads == 1

    report.save(tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.glob("*.json*")] == ["report.json"]


def test_a_request_that_makes_no_sense_is_refused_with_all_its_faults(make_convs) -> None:
    model = make_convs("a.onnx")
    with pytest.raises(BenchError, match=r"threads is 0, expected at least 1; samples is -1.*; batch is 0, expected"):
        latency(model, threads=0, samples=-1, batch=0)
    with pytest.raises(BenchError, match="runs is 5, expected at least 6"):
        latency(model, runs=5)
    with pytest.raises(BenchError, match="min_seconds is nan"):
        latency(model, min_seconds=float("nan"))
    for timeout_s in (0.0, -1.0, float("nan"), float("inf"), 3e6):
        with pytest.raises(BenchError, match=r"timeout is \S+ s, expected more than 0 and at most 1,000,000"):
            latency(model, timeout_s=timeout_s)


def test_the_time_limit_holds_over_all_processes(make_convs) -> None:
    with pytest.raises(BenchError, match="a longer --timeout"):
        latency(make_convs("a.onnx"), runs=1000, samples=1000, min_seconds=0.0, timeout_s=1.0)


def test_threads_that_the_machine_lacks_and_other_processes_are_doubtful(report: LatencyReport) -> None:
    settings, host = replace(report.settings, threads=3), replace(report.host, usable_cores=2, load_average_1min=0.1)
    found = doubts(call_again, settings, host, (report.model,), None)
    assert "3 threads share 2 cores: run with --threads 2" in found
    busy = doubts(call_again, report.settings, replace(host, load_average_1min=1.9), (report.model,), None)
    assert any("load average 1.9 before the start, and 1 of 2 cores needed" in text for text in busy)
    idle = doubts(call_again, report.settings, host, (report.model,), None)
    assert not any("load average" in text for text in idle)


def test_a_noisy_report_says_how_to_measure_longer(report: LatencyReport) -> None:
    assert report.ratio is not None
    noisy = replace(report.ratio, low=report.ratio.value * 0.89, high=report.ratio.value * 1.11)
    results = (report.model, report.baseline)
    (warning,) = (text for text in doubts(call_again, report.settings, report.host, results, noisy) if "noisy" in text)
    assert warning == (
        "noisy: the interval of the ratio is +-11% wide, more than 5%; "
        "measure again with runs=30, samples=300, min_seconds=1"
    )


def test_a_machine_too_noisy_for_any_number_of_processes_is_called_that(report: LatencyReport) -> None:
    assert report.ratio is not None
    wild = replace(report.ratio, low=report.ratio.value * 0.59, high=report.ratio.value * 1.41)
    found = doubts(call_again, report.settings, report.host, (report.model,), wild)
    # 6 processes, 8.2 times as wide as 5 %: 6 * 8.2^2.
    (warning,) = (text for text in found if "noisy" in text)
    assert (
        "404 processes would be needed: take a quieter machine or core (--pin); measure again with runs=100, "
        in warning
    )


def test_pinned_cores_are_those_that_threads_share(report: LatencyReport) -> None:
    settings = replace(report.settings, threads=2, pin=(0,))
    host = replace(report.host, usable_cores=8, load_average_1min=0.0)
    first = doubts(call_again, settings, host, (report.model,), None)[0]
    assert first == "2 threads share 1 cores: run with --threads 1"
