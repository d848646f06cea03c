import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bench.cli
from bench.gate import load_gate_report

QUICK = "[measure]\nruns = 6\nsamples = 12\nmin_seconds = 0\nmemory_runs = 1\n"


@pytest.fixture
def budget(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "budget.toml"
        path.write_text(QUICK + text)
        return path

    return write


def test_the_exit_code_is_the_answer(make_convs, budget, tmp_path: Path, bench_command, capsys) -> None:
    model, dense = make_convs("small.onnx"), make_convs("dense.onnx", width=16, depth=4, size=16)
    files = [tmp_path / name for name in ("gate.xml", "gate.md", "gate.json")]
    words = ("gate", model, "--baseline", dense, "--junit", files[0], "--markdown", files[1], "--json", files[2])

    assert bench_command(*words, "--budget", budget("[latency]\nratio = 0.9\n[file]\nbytes = 1_000_000")) == 0
    assert "small.onnx: within budget" in capsys.readouterr().out
    assert ElementTree.parse(files[0]).getroot().get("failures") == "0"

    assert bench_command(*words, "--budget", budget("[file]\nbytes = 10\nratio = 1")) == 1
    printed = capsys.readouterr()
    assert "small.onnx: over budget" in printed.out
    assert f"file.bytes: {model.stat().st_size} bytes: over the limit of 10 bytes" in printed.err
    assert ElementTree.parse(files[0]).getroot().get("failures") == "1"
    assert files[1].read_text().startswith("### ❌ small.onnx is over its budget")
    assert json.loads(files[2].read_text())["outcome"] == "over"

    assert bench_command(*words, "--budget", budget("[accuracy]\ntest = 0.9")) == 2
    printed = capsys.readouterr()
    assert "small.onnx: could not be measured" in printed.out
    assert "accuracy.test: could not be measured: small.onnx has no test_accuracy in its metadata" in printed.err
    assert ElementTree.parse(files[0]).getroot().get("errors") == "1"
    assert load_gate_report(files[2]).outcome == "not measured"


def test_a_slower_model_than_the_baseline_breaks_the_ratio(make_convs, budget, bench_command, capsys) -> None:
    model, dense = make_convs("large.onnx", width=32, depth=4, size=32), make_convs("small.onnx")
    code = bench_command("gate", model, "--baseline", dense, "--budget", budget("[latency]\nratio = 1.0"))
    assert code == 1
    assert "over the limit of 1" in capsys.readouterr().err


def test_bad_input_is_a_message_exit_code_2_and_no_file(make_convs, budget, tmp_path, bench_command, capsys) -> None:
    model, good, out = make_convs("a.onnx"), budget("[file]\nbytes = 1_000_000"), tmp_path / "gate.xml"
    typo = tmp_path / "typo.toml"
    typo.write_text("[latency]\np50ms = 1\n[file]\nsize = 3\n")
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"\x3a\x7f")
    bad = {
        (model, "--budget", tmp_path / "none.toml"): "budget file not found",
        (model, "--budget", typo): "2 faults\n  latency.p50ms: unknown key (did you mean latency.p50_ms?)",
        (tmp_path / "none.onnx", "--budget", good): "model file not found",
        (corrupt, "--budget", good): "is no ONNX file",
        (model, "--budget", good, "--device", "toaster"): "unknown device 'toaster'",
        (model, "--budget", good, "--json", out): "--junit and --json name the same file",
        (model, "--budget", good, "--json", model): "would overwrite the model",
        (model, "--budget", good, "--markdown", good): f"--markdown {good} would overwrite {good}",
        (model, "--budget", good, "--markdown", tmp_path / "none" / "a.md"): "does not exist; make it first",
    }
    before = sorted(tmp_path.iterdir())
    for words, message in bad.items():
        assert bench_command("gate", *words, "--junit", out) == 2, words
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("bench: ")
        assert message in printed.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_defect_is_a_traceback_and_no_verdict(monkeypatch, bench_command, capsys) -> None:
    def defective() -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(bench.cli, "build_app", lambda: defective)
    assert bench_command("gate", "a.onnx") == 2  # 1 would say that the model is over its budget
    assert "ZeroDivisionError: a defect" in capsys.readouterr().err
