"""What the measuring subcommands print beyond their main table."""

from pathlib import Path
from types import SimpleNamespace

from bench.cli.profile import node_table, operator_table
from bench.loading import load_report
from bench.measure.profile import by_operator
from bench.onnx_file import OnnxFile
from bench.report import NodeProfile, Profile, ProfileResult

QUICK = ("--runs", "6", "--samples", "12", "--min-seconds", "0")


def test_latency_tells_cold_starts_throughput_and_frames(make_convs, tmp_path: Path, bench_command, capsys) -> None:
    model, out = make_convs("small.onnx"), tmp_path / "report.json"
    more = ("--batches", "1,3", "--deadline-ms", 5000, "--period-ms", 2, "--frames", 9, "--json", out)
    assert bench_command("latency", model, *QUICK, *more) == 0
    report = load_report(out)
    printed = " ".join(capsys.readouterr().out.split())
    times = report.model.latency
    assert f"cold start, the file in the page cache: model {times.load_ms:.4g} ms to load" in printed
    assert (report.settings.batch, report.settings.provider) == (1, "CPUExecutionProvider")
    assert report.model.inputs[0].shape[0] == 1
    assert [row.batch for row in report.throughput] == [1, 3]
    assert report.throughput[0].model.runs == times.runs
    assert f"{report.throughput[1].model.p50_ms:.4g}" in printed
    for row in report.throughput:
        assert row.model.images_per_second_low <= row.model.images_per_second <= row.model.images_per_second_high
        assert sum(len(run.samples_ns) for run in row.model.runs) == 12
    assert "frames every 2 ms, deadline 5000 ms" in printed
    assert "is dropped when a newer one arrives" in printed
    frames = report.realtime.model
    assert (frames.frames, frames.missed - frames.dropped) == (9, 0)  # the deadline is generous
    assert frames.inference_p50_ms < frames.response_p50_ms


def test_memory_tells_what_the_graph_needs(make_convs, tmp_path: Path, bench_command, capsys) -> None:
    out = tmp_path / "report.json"
    words = ("--repeats", 1, "--pin", 0, "--json", out)
    assert bench_command("memory", make_convs("a.onnx", width=16, size=8, depth=2), *words) == 0
    assert load_report(out).settings.pin == (0,)
    printed = capsys.readouterr().out
    weights, peak = 4 * 9 * 16 * (1 + 16), 2 * 16 * 8 * 8 * 4
    (line,) = (line for line in printed.splitlines() if "exact" in line)
    assert line.split() == ["model", f"{weights:,}", f"{peak:,}", "exact", f"{peak:,}"]


def test_profile_prints_nodes_and_operators(make_convs, tmp_path: Path, bench_command, capsys) -> None:
    model, dense = make_convs("small.onnx", depth=3), make_convs("dense.onnx", depth=3, width=16)
    out = tmp_path / "report.json"
    words = ("--runs", 1, "--samples", 5, "--top", 2, "--json", out)
    assert bench_command("profile", model, "--baseline", dense, *words) == 0
    figures = load_report(out).model.profile
    printed = capsys.readouterr().out
    assert f"the 2 longest of {len(figures.nodes)} nodes" in printed
    longest = max(figures.nodes, key=lambda node: node.time_us)
    (row,) = (line for line in printed.splitlines() if line.split()[:2] == longest.name.split())
    assert f"{longest.time_us:,.1f}" in row
    assert f"model: small.onnx, {figures.macs:,} MACs" in printed
    assert figures.macs == 8 * 8 * 9 * (4 + 4 * 4 + 4 * 4)


def test_a_fused_convolution_stands_beside_a_plain_one() -> None:
    def node(name: str, operator: str, time_us: float) -> NodeProfile:
        return NodeProfile(
            name=name,
            operator=operator,
            provider="CPU",
            output_shape=(1,),
            time_us=time_us,
            share=0.5,
            macs=1,
            gflops=1.0,
        )

    def result(*nodes: NodeProfile) -> ProfileResult:
        figures = Profile(
            p50_ms=1.0,
            profiled_p50_ms=1.0,
            nodes_ms=1.0,
            macs=2,
            uncounted=(),
            nodes=nodes,
            operators=by_operator(nodes),
            runs=(),
        )
        return ProfileResult(file=OnnxFile(file_name="a", sha256="", file_bytes=1), inputs=(), profile=figures)

    ours = result(node("a", "FusedConv", 10.0), node("b", "Conv", 20.0))
    theirs = result(node("a", "Conv", 40.0), node("b", "Conv", 60.0))
    report = SimpleNamespace(model=ours, baseline=theirs)
    (row,) = zip(*(column.cells for column in operator_table(report).columns), strict=True)
    assert row == ("Conv", "2", "2", "30.0", "100.0%", "2", "0.000133", "100.0", "4e-05", "0.300")
    rows = list(zip(*(column.cells for column in node_table(report, 5).columns), strict=True))
    assert [cells[2] for cells in rows] == ["Conv", "FusedConv beside Conv"]


def test_what_cannot_be_measured_is_refused_in_one_line(make_convs, tmp_path: Path, bench_command, capsys) -> None:
    model, out = make_convs("a.onnx"), tmp_path / "report.json"
    refused = {
        ("latency", "--period-ms", 33): "--period-ms needs --deadline-ms",
        ("latency", "--deadline-ms", 0): "deadline_ms is 0",
        ("latency", "--batches", "1,x"): "--batches '1,x': expected whole numbers with commas",
        ("latency", "--batches", "4,4"): "expected different sizes",
        ("latency", "--pin", "0,0"): "pin is 0,0, expected different cores",
        ("latency", "--pin", "4096"): "this process may not run on core 4096; it may run on ",
        ("latency", "--provider", "warp"): "has no execution provider 'warp' here; it has ",
        ("memory", "--provider", "warp"): "has no execution provider 'warp' here; it has ",
        ("profile", "--provider", "warp"): "has no execution provider 'warp' here; it has ",
        ("profile", "--runs", 0): "runs is 0, expected at least 1",
    }
    assert bench_command("profile", model, "--top", 0) == 2
    assert "Invalid value for '--top'" in capsys.readouterr().err
    for (measure, *words), message in refused.items():
        assert bench_command(measure, model, *words, "--json", out) == 2, words
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert not out.exists()
