"""What the measuring subcommands print beyond their main table."""

from pathlib import Path

from bench.report import load_report

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
    for (measure, *words), message in refused.items():
        assert bench_command(measure, model, *words, "--json", out) == 2, words
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert not out.exists()
