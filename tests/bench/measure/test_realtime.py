import pytest

from bench.errors import BenchError
from bench.measure.latency import latency
from bench.measure.realtime import PROCESSES, Deadline, frames, longest_run
from bench.protocol import PeriodicSamples

MS = 1_000_000


def test_late_and_dropped_frames_are_missed() -> None:
    first = PeriodicSamples(
        response_ns=(5 * MS, 12 * MS, None, 10 * MS, None, None, 11 * MS), inference_ns=(5 * MS, 9 * MS, 8 * MS, 8 * MS)
    )
    second = PeriodicSamples(response_ns=(11 * MS, 7 * MS), inference_ns=(7 * MS, 7 * MS))
    found = frames([first, second], deadline_ms=10.0)
    assert (found.frames, found.missed, found.dropped) == (9, 6, 3)
    assert found.missed_share == pytest.approx(6 / 9)
    # Frames 4, 5 and 6 of the first process; the first of the second is another camera's.
    assert found.longest_run == 3
    assert found.response_p50_ms == pytest.approx(10.5)
    assert found.inference_p50_ms == pytest.approx(7.5)


def test_the_longest_run() -> None:
    assert longest_run([]) == 0
    assert longest_run([False, False]) == 0
    assert longest_run([True, False, True, True, False, True]) == 2


def test_frames_faster_than_the_model_are_dropped(make_convs) -> None:
    """At a period far below the inference time, the newest frame is computed and those in between are dropped."""
    model = make_convs("slow.onnx", width=16, depth=8, size=64)
    deadline = Deadline(deadline_ms=1e5, period_ms=0.02, frames=30)
    report = latency(model, runs=6, samples=6, min_seconds=0.0, deadline=deadline)
    assert report.realtime is not None
    found = report.realtime.model
    assert report.realtime.baseline is None
    assert (report.realtime.deadline_ms, report.realtime.period_ms) == (1e5, 0.02)
    assert found.frames == 30
    assert len(found.runs) == PROCESSES
    assert found.dropped >= 15
    assert found.missed == found.dropped
    for run in found.runs:
        computed = [response for response in run.response_ns if response is not None]
        assert len(computed) == len(run.inference_ns) < 10
        assert run.response_ns[0] is not None
        # A response holds its inference.
        assert all(response >= inference for response, inference in zip(computed, run.inference_ns, strict=True))


def test_frames_slower_than_the_model_meet_a_generous_deadline(make_convs) -> None:
    deadline = Deadline(deadline_ms=60_000.0, period_ms=5.0, frames=6)
    report = latency(make_convs("a.onnx"), make_convs("b.onnx"), runs=6, samples=6, min_seconds=0.0, deadline=deadline)
    assert report.realtime is not None
    for found in (report.realtime.model, report.realtime.baseline):
        assert found is not None
        assert (found.frames, found.missed - found.dropped) == (6, 0)
        assert found.inference_p50_ms < found.response_p50_ms


def test_times_that_make_no_sense_are_refused_together() -> None:
    with pytest.raises(BenchError, match=r"deadline_ms is 0, expected 0.01 or more; period_ms is -1.*; frames is 0"):
        Deadline(deadline_ms=0, period_ms=-1, frames=0)
    with pytest.raises(BenchError, match="deadline_ms is nan"):
        Deadline(deadline_ms=float("nan"))
    assert Deadline(deadline_ms=33.0).every_ms == 33.0
