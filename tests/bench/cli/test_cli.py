import json
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import typer
from typer.testing import CliRunner

from bench.cli import COMMANDS, build_app
from bench.cli.options import command_again, parse_shapes
from bench.errors import BenchError
from bench.loading import load_report

QUICK = ("--runs", "6", "--samples", "12", "--min-seconds", "0")


def test_latency_prints_a_table_and_writes_the_report(make_convs, tmp_path: Path, bench_command, capsys) -> None:
    model, dense = make_convs("small.onnx"), make_convs("dense.onnx", width=16, depth=4, size=16)
    out = tmp_path / "report.json"
    assert bench_command("latency", model, "--baseline", dense, "--json", out, *QUICK) == 0
    report = load_report(out)
    printed = capsys.readouterr().out
    data = json.loads(out.read_text())
    assert (data["format"], data["version"], data["measure"]) == ("bench-report", 1, "latency")
    assert [len(run["samples_ns"]) for run in data["baseline"]["latency"]["runs"]] == [2] * 6
    for text in ("small.onnx", "dense.onnx", "p50", "p90", "p95", "p99", "ratio", "image [1, 1, 8, 8] float", "host: "):
        assert text in printed
    assert f"{report.model.latency.p50_ms:.4g}" in printed
    assert f"{report.ratio.value:.3f} [{report.ratio.low:.3f}, {report.ratio.high:.3f}]" in printed


def test_memory_prints_a_table_and_writes_the_report(make_convs, tmp_path: Path, bench_command, capsys) -> None:
    out = tmp_path / "report.json"
    assert bench_command("memory", make_convs("a.onnx"), "--repeats", 1, "--json", out) == 0
    report = load_report(out)
    assert report.measure == "memory"
    assert f"{report.model.file.file_bytes:,}" in capsys.readouterr().out


def test_bad_input_is_one_message_and_exit_code_2(make_convs, tmp_path: Path, bench_command, capsys) -> None:
    model, out = make_convs("a.onnx"), tmp_path / "report.json"
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"\0" * 100)
    bad = {
        ("latency", tmp_path / "none.onnx"): "model file not found",
        ("latency", corrupt): "cannot load",
        ("memory", corrupt): "cannot load",
        ("latency", model, "--baseline", tmp_path / "none.onnx"): "model file not found",
        ("latency", model, "--device", "toaster"): "known devices: cpu",
        ("latency", model, "--shape", "image"): "expected INPUT=SIZES",
        ("latency", model, "--threads", 0): "threads is 0",
        ("latency", model, "--batch", -1): "batch is -1",
        ("latency", model, "--runs", 3): "runs is 3, expected at least 6",
        ("memory", model, "--repeats", 0): "bench: repeats is 0, expected at least 1\n",
    }
    for words, message in bad.items():
        assert bench_command(*words, "--json", out) == 2, words
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("bench: ")
        assert printed.err.count("\n") == 1
        assert message in printed.err
        assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["corrupt.onnx"]


def test_a_report_that_cannot_be_written_is_refused_before_measuring(
    make_convs, tmp_path, bench_command, capsys
) -> None:
    model = make_convs("a.onnx")
    assert bench_command("latency", model, "--json", tmp_path / "none" / "a.json") == 2
    assert "does not exist; make it first" in capsys.readouterr().err
    assert bench_command("memory", model, "--json", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_failure_leaves_the_older_report(make_convs, tmp_path: Path, bench_command) -> None:
    out = tmp_path / "report.json"
    out.write_text("older")
    assert bench_command("latency", tmp_path / "none.onnx", "--json", out) == 2
    assert out.read_text() == "older"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_commands_to_paste(name: str) -> None:
    result = CliRunner().invoke(build_app(), [name, "--help"])
    assert result.exit_code == 0
    assert result.output.rstrip().splitlines()[-1].strip().startswith(f"bench {name} ")


def test_an_unknown_option_is_exit_code_2(bench_command, capsys) -> None:
    assert bench_command("latency", "a.onnx", "--speed", "1") == 2
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, limits",
    [("latency", ("Fresh processes, at least 6", "more; at least 1", "0 or more")), ("memory", ("model, at least 1",))],
)
def test_help_says_the_limits(name: str, limits: tuple[str, ...]) -> None:
    words = " ".join(CliRunner().invoke(build_app(), [name, "--help"]).output.split())
    assert [limit for limit in limits if limit not in words] == []


@pytest.mark.parametrize("start", [("-c", "from bench.cli import main; main()"), ("-m", "bench")])
def test_the_console_script_shows_no_traceback(start: tuple[str, str], tmp_path: Path) -> None:
    words = [sys.executable, *start, "latency", str(tmp_path / "none.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"bench: model file not found: {tmp_path / 'none.onnx'}\n"


def test_a_command_to_run_again_keeps_what_was_given() -> None:
    latency_line = typer.main.get_command(build_app()).commands["latency"]
    given = ["a b.onnx", "--runs=7", "--deadline-ms", "5", "--frames", "200", "--shape", "x=1,3", "--shape", "y=2"]
    context = latency_line.make_context("latency", [*given, "--json", "rt.json"])
    assert shlex.split(command_again(context, {"runs": 30, "min_seconds": "1.5"})) == [
        *("bench", "latency", "a b.onnx", "--min-seconds", "1.5", "--runs", "30", "--shape", "x=1,3", "--shape", "y=2"),
        *("--deadline-ms", "5.0", "--frames", "200", "--json", "rt.json"),
    ]


@pytest.mark.parametrize("name", ["latency", "memory", "profile"])
def test_help_lists_no_device_that_the_command_refuses(name: str) -> None:
    words = " ".join(CliRunner().invoke(build_app(), [name, "--help"]).output.split())
    assert "Where to measure: cpu, ssh, adb;" in words
    assert "arm64" not in words


def test_shapes_are_parsed() -> None:
    assert parse_shapes(["x=1,3,8,8", "a=b=2"]) == {"x": (1, 3, 8, 8), "a=b": (2,)}
    assert parse_shapes(None) == {}
    for words in (["x"], ["x="], ["=1,2"], ["x=1,a"], ["x=1", "x=2"]):
        with pytest.raises(BenchError, match="--shape"):
            parse_shapes(words)


def test_a_report_does_not_overwrite_the_weights_of_the_model(make_convs, tmp_path, bench_command, capsys) -> None:
    path, weights = tmp_path / "outside.onnx", tmp_path / "weights.json"
    onnx.save(
        onnx.load(make_convs("a.onnx")), path, save_as_external_data=True, location=weights.name, size_threshold=0
    )
    before = weights.read_bytes()
    assert bench_command("latency", path, "--json", weights) == 2
    assert capsys.readouterr().err == (
        f"bench: --json {weights} would overwrite the weights of {path}; give another name: weights-report.json\n"
    )
    assert weights.read_bytes() == before


def test_a_report_does_not_overwrite_the_model(make_convs, bench_command, capsys):
    model = make_convs("a.onnx")
    before = model.read_bytes()
    assert bench_command("latency", model, "--json", model) == 2
    assert bench_command("memory", model, "--json", model) == 2
    assert "would overwrite the model" in capsys.readouterr().err
    assert model.read_bytes() == before
