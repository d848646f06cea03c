import sys
from pathlib import Path

import pytest

from bench import targets
from bench.errors import BenchError
from bench.measure.latency import latency
from bench.measure.runs import require_unchanged
from bench.onnx_file import describe
from bench.targets.local import LocalTarget


def test_a_file_that_changes_while_measured_is_refused(make_convs) -> None:
    path = make_convs("a.onnx")
    before = [describe(path)]
    require_unchanged(before, [str(path)])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BenchError, match=r"a.onnx changed while it was measured; measure again"):
        require_unchanged(before, [str(path)])


def test_an_answer_about_fewer_models_than_asked_for_is_refused(make_convs, tmp_path: Path, monkeypatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("""print('{"format":"bench-answer","version":1,"error":null,"host":null,"models":[]}')""")
    monkeypatch.setitem(targets.TARGETS, "other", lambda _: LocalTarget(worker=worker))
    with pytest.raises(BenchError, match="0 models, asked for 1"):
        latency(make_convs("a.onnx"), device="other")


def test_progress_is_told_after_each_process(make_convs) -> None:
    seen: list[tuple[int, int]] = []
    report = latency(
        make_convs("a.onnx"),
        runs=6,
        samples=12,
        min_seconds=0.0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 6) for done in range(1, 7)]
    # Without a baseline there is no ratio, and nothing between the samples.
    assert (report.baseline, report.ratio, report.verdict) == (None, None, None)
    assert report.model.latency.samples == 12
    assert report.model.latency.runs[0].untimed_between == 0
    assert report.host.python == ".".join(map(str, sys.version_info[:3]))
