import pytest

from bench.errors import BenchError
from bench.measure.realtime import PROCESSES, Deadline, frames, longest_run, realtime, requests
from bench.measure.runs import answers, models_of, request_of
from bench.protocol import MeasuredModel, PeriodicSamples, Request
from bench.report import Settings

MS = 1_000_000


def template_of(*paths: str) -> Request:
    settings = Settings(threads=1, batch=None, shapes={}, runs=1, min_seconds=0.0, min_samples=1, seed=0)
    return request_of("latency", paths, settings)


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


def test_frames_go_to_the_model_that_computed_them() -> None:
    """The processes of model and baseline take turns."""
    asked = requests(Deadline(deadline_ms=2.0, frames=7), template_of("a.onnx", "b.onnx"))
    assert [request.models for request in asked] == [("a.onnx",), ("b.onnx",)] * PROCESSES
    assert [request.min_samples for request in asked] == [3, 3, 2, 2, 2, 2]
    assert {request.period_ns for request in asked} == {2 * MS}
    assert [request.min_samples for request in requests(Deadline(deadline_ms=2.0, frames=2), asked[0])] == [1, 1]
    answered = [
        MeasuredModel(inputs=(), periodic=PeriodicSamples(response_ns=(time,) * 3, inference_ns=(time,) * 3))
        for time in (MS, 3 * MS) * PROCESSES
    ]
    found = realtime(Deadline(deadline_ms=2.0), answered, 2)
    assert found.baseline is not None
    assert (found.model.frames, found.model.missed) == (9, 0)
    assert (found.baseline.frames, found.baseline.missed) == (9, 9)


def test_the_longest_run() -> None:
    assert longest_run([]) == 0
    assert longest_run([False, False]) == 0
    assert longest_run([True, False, True, True, False, True]) == 2


def test_frames_faster_than_the_model_are_dropped(make_convs) -> None:
    """At a period far below the inference time, the newest frame is computed and those in between are dropped."""
    model = make_convs("slow.onnx", width=16, depth=8, size=64)
    deadline = Deadline(deadline_ms=1e5, period_ms=0.02, frames=30)
    asked = requests(deadline, template_of(str(model)))
    found = realtime(deadline, models_of(answers("cpu", asked, 60.0, None)), 1)
    assert found.baseline is None
    assert (found.deadline_ms, found.period_ms) == (1e5, 0.02)
    assert found.model.frames == 30
    assert len(found.model.runs) == PROCESSES
    assert found.model.dropped >= 15
    assert found.model.missed == found.model.dropped
    for run in found.model.runs:
        computed = [response for response in run.response_ns if response is not None]
        assert len(computed) == len(run.inference_ns) < 10
        assert run.response_ns[0] is not None
        # A response holds its inference.
        assert all(response >= inference for response, inference in zip(computed, run.inference_ns, strict=True))


def test_times_that_make_no_sense_are_refused_together() -> None:
    with pytest.raises(BenchError, match=r"deadline_ms is 0, expected 0.01.*; period_ms is -1.*; frames is 0"):
        Deadline(deadline_ms=0, period_ms=-1, frames=0)
    with pytest.raises(BenchError, match="deadline_ms is nan"):
        Deadline(deadline_ms=float("nan"))
    with pytest.raises(BenchError, match=r"^deadline_ms is -1, expected 0.01 or more, below 1,000,000$"):
        Deadline(deadline_ms=-1)  # nothing is said of a period, which was not given
    assert Deadline(deadline_ms=33.0).every_ms == 33.0
