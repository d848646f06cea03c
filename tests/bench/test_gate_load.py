"""A small part of ``make gate-load``: what runs of the gate leave behind."""

import importlib
import sys
from pathlib import Path

import pytest

RUNS, MEMORY_EVERY = 8, 4
KIB = 1 << 10


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc of Linux")
def test_runs_of_the_gate_leave_no_process_no_file_and_no_memory(make_convs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "experiments")
    monkeypatch.setattr(sys, "argv", ["bench"])
    load = importlib.import_module("gate_load")
    model = make_convs("small.onnx")
    states = list(load.gate_often(model, model, RUNS, memory_every=MEMORY_EVERY))
    assert [state.run for state in states] == list(range(1, RUNS + 1))
    assert {(state.children, state.temporary_files, state.other_files) for state in states} == {(0, 0, 0)}
    assert states[-1].open_files == states[0].open_files
    assert load.growth(states) < 100 * KIB  # caches still fill in the first runs; a thousand tell more


def test_what_is_left_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "experiments")
    load = importlib.import_module("gate_load")

    def states(**last: int) -> list:
        clean = {"resident_bytes": 10**8, "open_files": 5, "children": 0, "temporary_files": 0, "other_files": 0}
        kept = [load.State(run=run, seconds=0.0, **clean) for run in range(1, 100)]
        return [*kept, load.State(run=100, seconds=0.0, **{**clean, **last})]

    assert load.faults(states()) == []
    assert load.faults(states(children=2)) == ["child processes: 2"]
    assert load.faults(states(temporary_files=1, open_files=6)) == ["temporary files: 1", "open files: 5, then 6"]
    leaking = [
        load.State(run=run, seconds=0.0, resident_bytes=10**8 + 5000 * run, open_files=5, **dict.fromkeys(left, 0))
        for left in [("children", "temporary_files", "other_files")]
        for run in range(1, 101)
    ]
    assert load.growth(leaking) == pytest.approx(5000)
    assert load.faults(leaking) == ["memory grows by 5000 bytes a run, more than 1024"]
