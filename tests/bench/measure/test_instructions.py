"""Everything but QEMU: the counts come from a stand-in that counts the bytes of the model's file for each inference."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import load_report, targets
from bench.cli import main
from bench.errors import BenchError
from bench.measure.instructions import instructions
from bench.protocol import Answer, Request
from bench.targets.launch import WORKER
from bench.targets.local import LocalTarget

STAND_IN = """
COUNT = [0]


def mark() -> None:
    COUNT[0] += 70
    with open({counter!r}, "a") as file:
        file.write(str(COUNT[0]) + "\\n")


def counted_run(model: Model) -> None:
    COUNT[0] += Path(model.path).stat().st_size
    COUNT[0] += {jitter}
    model.session.run(None, model.feeds)


Model.run = counted_run
MEASURES = {{"""


class Counting(LocalTarget):
    """This machine, as if it counted."""

    def __init__(self, folder: Path, jitter: str) -> None:
        folder.mkdir()
        worker = folder / "worker.py"
        self.counter = folder / "counts"
        text = WORKER.read_text()
        assert text.count("MEASURES = {") == 1
        worker.write_text(text.replace("MEASURES = {", STAND_IN.format(counter=str(self.counter), jitter=jitter)))
        super().__init__(worker=worker)

    def run(self, request: Request) -> Answer:
        self.counter.unlink(missing_ok=True)
        return super().run(replace(request, counter=str(self.counter)))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(targets.TARGETS, "counting", lambda _: Counting(tmp_path / "counting", "0"))
    return "counting"


def test_the_figures_are_the_counts(make_convs, device: str) -> None:
    small, dense = make_convs("small.onnx"), make_convs("dense.onnx", width=16)
    report = instructions(small, dense, device=device, runs=2, samples=5)
    sizes = [small.stat().st_size, dense.stat().st_size]
    assert report.baseline is not None
    for result, size in zip((report.model, report.baseline), sizes, strict=True):
        figures = result.instructions
        assert (figures.per_inference, figures.low, figures.high, figures.spread) == (size, size, size, 0.0)
        assert [run.counts for run in figures.runs] == [(size,) * 3] * 2
        assert {run.marking for run in figures.runs} == {70}
        assert (result.parity.max_abs_error, result.parity.arithmetic) == (0.0, "float32")
    assert report.ratio == sizes[0] / sizes[1]
    assert (report.settings.threads, report.warnings) == (1, ())


def test_the_command_prints_the_table_and_writes_the_report(
    make_convs, tmp_path: Path, device: str, monkeypatch, capsys
) -> None:
    small, dense, out = make_convs("small.onnx"), make_convs("dense.onnx", width=16), tmp_path / "report.json"
    words = [small, "--baseline", dense, "--device", device, "--runs", 1, "--samples", 2, "--json", out]
    monkeypatch.setattr(sys, "argv", ["bench", "instructions", *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        main()
    assert not ending.value.code
    printed = capsys.readouterr().out
    sizes = [path.stat().st_size for path in (small, dense)]
    for text in (f"{sizes[0]:,}", f"{sizes[1]:,}", f"{sizes[0] / sizes[1]:.3f}", "0.00%", "small.onnx", "host: "):
        assert text in printed
    assert json.loads(out.read_text())["measure"] == "instructions"
    assert load_report(out).model.instructions.per_inference == sizes[0]


def test_counts_that_do_not_repeat_are_doubted(make_convs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets.TARGETS, "counting", lambda _: Counting(tmp_path / "jitter", "COUNT[0]"))
    path = make_convs("a.onnx")
    (warning,) = instructions(path, device="counting", runs=1, samples=3).warnings
    assert warning.startswith("a.onnx: counts of single inferences differ by ")
    assert warning.endswith("more than 1%; measure again with runs=2, samples=12")


def test_a_device_that_does_not_count_is_refused(make_convs) -> None:
    path = make_convs("a.onnx")
    with pytest.raises(BenchError, match=rf"bench instructions {path} --device arm64:cortex-a53"):
        instructions(path, device="cpu")


def test_wrong_outputs_have_no_figures(make_convs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: str) -> Counting:
        target = Counting(tmp_path / "wrong", "0")
        text = target.worker.read_text()
        line = "values = model.session.run(None, model.feeds)"
        assert text.count(line) == 1
        target.worker.write_text(text.replace(line, f"{line}\n    values = [2 * value for value in values]"))
        return target

    monkeypatch.setitem(targets.TARGETS, "counting", wrong)
    path = make_convs("a.onnx")
    with pytest.raises(BenchError, match=r"a.onnx computes something else on counting than on this machine: output y0"):
        instructions(path, device="counting", runs=1, samples=1)
