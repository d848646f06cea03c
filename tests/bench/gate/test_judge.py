from dataclasses import replace

import numpy as np
import pytest

from bench.errors import BenchError
from bench.gate import Budget, GateReport, gate, load_gate_report
from bench.gate.budget import SETTINGS
from bench.gate.evidence import KEYS, Evidence, Failed, Measurement, facts_of, in_budget, in_keys
from bench.gate.judge import check, judged, outcome
from bench.gate.limits import LIMITS, Figure
from bench.gate.report import EXIT_CODES
from bench.measure.realtime import frames
from bench.protocol import PeriodicSamples
from bench.report import Instructions, InstructionsReport, InstructionsResult, Parity, Realtime
from bench.stats import Ratio
from tests.bench.conftest import QUICK, Pair, tell


def figure(low: float, value: float, high: float) -> Figure:
    return Figure(value=value, low=low, high=high)


def evidence_of(pair: Pair, report: GateReport) -> Evidence:
    return Evidence(
        model=facts_of(pair.model),
        baseline=facts_of(pair.baseline),
        latency=report.latency,
        memory=report.memory,
        instructions=None,
    )


@pytest.mark.parametrize(
    ("found", "most", "least"),
    [
        (figure(0.7, 0.8, 0.9), "within", "over"),
        (figure(0.7, 0.8, 1.0), "within", "uncertain"),
        (figure(0.9, 0.99, 1.01), "uncertain", "uncertain"),
        (figure(1.0, 1.1, 1.2), "uncertain", "within"),
        (figure(1.01, 1.1, 1.2), "over", "within"),
        (figure(1.0, 1.0, 1.0), "within", "within"),
    ],
)
def test_a_limit_of_1_is_broken_by_a_whole_interval_only(found: Figure, most: str, least: str) -> None:
    assert judged(found, 1.0, at_least=False) == most
    assert judged(found, 1.0, at_least=True) == least


def test_what_is_over_is_over_whatever_else_could_not_be_measured(generous: GateReport) -> None:
    def outcome_of(*verdicts: str) -> str:
        return outcome([replace(generous.checks[0], verdict=verdict) for verdict in verdicts])

    assert outcome_of("within", "uncertain") == "uncertain"
    assert outcome_of("uncertain", "not measured") == "not measured"
    assert outcome_of("within", "not measured") == "not measured"
    assert outcome_of("not measured", "over", "within") == "over"
    codes = [replace(generous, outcome=name).exit_code for name in EXIT_CODES]
    assert dict(zip(EXIT_CODES, codes, strict=True)) == {"within": 0, "uncertain": 0, "over": 1, "not measured": 2}


def test_the_figures_are_those_of_the_measurements(pair: Pair, generous: GateReport, tmp_path) -> None:
    assert generous.outcome == "within"
    assert generous.latency is not None
    assert generous.memory is not None
    found = {one.name: one for one in generous.checks}
    ratio = generous.latency.ratio
    assert ratio is not None
    assert (found["latency.ratio"].low, found["latency.ratio"].high) == (ratio.low, ratio.high)
    assert ratio.high < 1  # the baseline has sixty times the work
    samples = np.concatenate([run.samples_ns for run in generous.latency.model.latency.runs]) / 1e6
    p99 = found["latency.p99_ms"]
    assert p99.value == pytest.approx(np.quantile(samples, 0.99))
    assert p99.low is not None
    assert p99.high is not None
    assert samples.min() <= p99.low <= p99.high <= samples.max()
    assert found["file.bytes"].value == pair.model.stat().st_size
    assert found["memory.peak_bytes"].value == generous.memory.model.memory.peak_rss_bytes
    assert found["accuracy.test"].value == 0.9887
    assert found["accuracy.test_drop"].value == pytest.approx(0.992 - 0.9887, abs=1e-15)
    assert found["parity.max_abs_difference"].value == 1.5e-6
    assert any("latency.p99_ms rests on 12 samples" in text for text in generous.warnings)
    generous.save(tmp_path / "gate.json")
    assert load_gate_report(tmp_path / "gate.json") == generous


def test_a_ratio_is_over_when_its_whole_interval_is(pair: Pair, generous: GateReport) -> None:
    evidence = evidence_of(pair, generous)
    assert generous.latency is not None

    def told(low: float, high: float) -> tuple[str, str]:
        ratio = Ratio(value=(low + high) / 2, low=low, high=high)
        done = check("latency.ratio", 0.9, replace(evidence, latency=replace(generous.latency, ratio=ratio)))
        return done.verdict, done.reason

    assert told(0.7, 0.8) == ("within", "0.75, 95 % interval 0.7 to 0.8: at most 0.9")
    assert told(0.95, 1.05) == ("over", "1, 95 % interval 0.95 to 1.05: over the limit of 0.9")
    verdict, reason = told(0.85, 0.95)
    assert verdict == "uncertain"
    assert reason.endswith("not distinguishable from the limit of 0.9; to tell, raise measure.runs in the budget")


def test_memory_is_over_when_every_process_is(pair: Pair, generous: GateReport) -> None:
    evidence = evidence_of(pair, generous)
    assert generous.memory is not None
    (run,) = generous.memory.model.memory.runs
    runs = tuple(replace(run, peak_rss_bytes=run.bare_rss_bytes + extra) for extra in (1000, 1100, 1200))
    figures = replace(generous.memory.model.memory, runs=runs, peak_over_bare_bytes=1100)
    memory = replace(generous.memory, model=replace(generous.memory.model, memory=figures))
    verdicts = [
        check("memory.peak_over_bare_bytes", limit, replace(evidence, memory=memory)).verdict
        for limit in (999, 1000, 1199, 1200)
    ]
    assert verdicts == ["over", "uncertain", "uncertain", "within"]


def test_seconds_of_an_emulator_are_no_latency(pair: Pair, generous: GateReport) -> None:
    assert generous.latency is not None
    emulated = replace(generous.latency, host=replace(generous.latency.host, emulated=True))
    for name in (name for name, limit in LIMITS.items() if limit.measure == "latency"):
        done = check(name, 1e9, replace(evidence_of(pair, generous), latency=emulated))
        assert (done.verdict, done.value) == ("not measured", None)
        assert "seconds under an emulator are no latency" in done.reason


def test_a_measure_that_failed_is_told_by_each_of_its_checks(pair: Pair, generous: GateReport) -> None:
    evidence = replace(evidence_of(pair, generous), latency=Failed("the board is asleep"))
    done = check("latency.p50_ms", 1.0, evidence)
    assert (done.verdict, done.reason) == ("not measured", "could not be measured: the board is asleep")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "has no test_accuracy in its metadata; compress export writes it"),
        ({"test_accuracy": "null"}, "is null: nobody measured it"),
        ({"test_accuracy": "high"}, "is 'high', expected a number"),
        ({"test_accuracy": "NaN"}, "is 'NaN', expected a number"),
        ({"test_accuracy": "true"}, "is 'true', expected a number"),
        ({"test_accuracy": "1" + "0" * 400}, "expected a number"),
        ({"test_accuracy": "98.9"}, "is 98.9, expected 0 to 1"),
    ],
)
def test_accuracy_that_the_file_does_not_tell_is_not_measured(make_convs, entries, message) -> None:
    path = tell(make_convs("a.onnx"), **entries)
    report = gate(path, Budget(name="b.toml", limits={"accuracy.test": 0.5}, measure=QUICK))
    assert report.outcome == "not measured"
    assert message in report.checks[0].reason
    assert (report.latency, report.memory, report.instructions) == (None, None, None)  # nobody asked for them


def test_a_limit_that_compares_needs_a_baseline(pair: Pair) -> None:
    budget = Budget(name="b.toml", limits={"file.ratio": 1.0, "latency.ratio": 1.0, "file.bytes": 1.0}, measure=QUICK)
    with pytest.raises(BenchError, match=r"b.toml limits file.ratio, latency.ratio: give --baseline DENSE.onnx"):
        gate(pair.model, budget)
    with pytest.raises(BenchError, match="unknown device 'toaster'"):
        gate(pair.model, replace(budget, limits={"file.bytes": 1.0}), device="toaster")


def test_a_model_that_cannot_run_is_not_measured_but_what_its_file_tells_is(make_convs) -> None:
    path = tell(make_convs("a.onnx", batch=1), test_accuracy="0.9")
    measure = replace(QUICK, batch=4)
    limits = {"latency.p50_ms": 1.0, "accuracy.test": 0.95, "file.bytes": 1e6}
    report = gate(path, Budget(name="b.toml", limits=limits, measure=measure))
    assert [one.verdict for one in report.checks] == ["not measured", "over", "within"]
    assert "no input can take batch 4" in report.checks[0].reason
    assert report.exit_code == 1
    assert isinstance(report.measure, Measurement)


def test_cold_start_and_static_memory_are_those_of_the_reports(pair: Pair, generous: GateReport) -> None:
    assert generous.latency is not None
    assert generous.memory is not None
    evidence = evidence_of(pair, generous)
    times, static = generous.latency.model.latency, generous.memory.model.static
    cold = [run.load_ns / 1e6 for run in times.runs if run.loaded_first]
    load = check("latency.load_ms", 1e6, evidence)
    assert (load.value, load.low, load.high) == (times.load_ms, min(cold), max(cold))
    assert check("latency.first_inference_ms", 1e6, evidence).value == times.first_inference_ms
    assert check("memory.weight_bytes", 1e6, evidence).value == static.weight_bytes == 4 * 9 * 4
    assert check("memory.activation_bytes", 1e6, evidence).value == static.peak_activation_bytes
    unknown = replace(static, peak_activation_bytes=None, unknown_because="a loop has no known length")
    memory = replace(generous.memory, model=replace(generous.memory.model, static=unknown))
    done = check("memory.activation_bytes", 1e6, replace(evidence, memory=memory))
    assert (done.verdict, done.reason) == ("not measured", "could not be measured: a loop has no known length")


def fed(pair: Pair, generous: GateReport, *responses: tuple[int | None, ...]) -> Evidence:
    """Frames of several processes, with a deadline of 2 ms."""
    runs = tuple(PeriodicSamples(response_ns=response, inference_ns=(1_000_000,)) for response in responses)
    realtime = Realtime(deadline_ms=2.0, period_ms=2.0, model=frames(runs, deadline_ms=2.0), baseline=None)
    assert generous.latency is not None
    return replace(evidence_of(pair, generous), latency=replace(generous.latency, realtime=realtime))


def test_a_share_of_missed_frames_has_an_interval(pair: Pair, generous: GateReport) -> None:
    ms = 1_000_000
    none = fed(pair, generous, (ms,) * 34, (ms,) * 33, (ms,) * 33)
    share = check("latency.missed_share", 0.01, none)
    assert (share.low, share.value) == (0, 0)
    assert share.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert share.verdict == "uncertain"
    assert "to tell, set measure.frames = 368 in the budget" in share.reason
    assert check("latency.missed_share", 0.04, none).verdict == "within"
    zero = check("latency.missed_share", 0.0, none)
    assert (zero.verdict, zero.reason.rpartition("; ")[2]) == (
        "uncertain",
        "no number of frames up to 1,000,000 would tell: set another limit",
    )
    many = fed(pair, generous, *[(ms, None, 3 * ms, ms) * 20] * 3)
    assert check("latency.missed_share", 0.3, many).verdict == "over"


def test_the_longest_row_of_missed_frames_is_over_when_that_of_every_process_is(
    pair: Pair, generous: GateReport
) -> None:
    ms = 1_000_000
    evidence = fed(pair, generous, (ms, 3 * ms, 3 * ms, ms), (ms, None, 3 * ms, 3 * ms))
    assert check("latency.longest_run", 3, evidence).verdict == "within"
    assert check("latency.longest_run", 2, evidence).reason.endswith("; to tell, raise measure.frames in the budget")
    row = check("latency.longest_run", 1, evidence)
    assert (row.low, row.value, row.high, row.verdict) == (2, 3, 3, "over")
    without = check("latency.missed_share", 0.5, evidence_of(pair, generous))
    assert without.reason == "could not be measured: no frames were fed: set measure.deadline_ms"


def test_instructions_are_over_when_every_count_is(pair: Pair, generous: GateReport) -> None:
    assert generous.latency is not None
    parity = Parity(output="y", arithmetic="float32", max_abs_error=0.0, largest_value=1.0, tolerance=1e-4)

    def result(of, low: int, high: int) -> InstructionsResult:
        figures = Instructions(per_inference=(low + high) // 2, low=low, high=high, runs=())
        return InstructionsResult(file=of.file, inputs=of.inputs, instructions=figures, parity=parity)

    timed = generous.latency
    report = InstructionsReport(
        measure="instructions",
        created=timed.created,
        device="arm64",
        settings=timed.settings,
        host=replace(timed.host, emulated=True),
        warnings=(),
        model=result(timed.model, 90, 110),
        baseline=result(timed.model, 190, 210),
        ratio=0.5,
    )
    evidence = replace(evidence_of(pair, generous), instructions=report)
    verdicts = [check("instructions.per_inference", limit, evidence).verdict for limit in (89, 90, 109, 110)]
    assert verdicts == ["over", "uncertain", "uncertain", "within"]
    ratio = check("instructions.ratio", 0.7, evidence)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((90 / 210, 0.5, 110 / 190))
    assert ratio.verdict == "within"


def test_a_device_that_counts_no_instructions_is_not_measured(pair: Pair) -> None:
    limits = {"instructions.per_inference": 1e9}
    report = gate(pair.model, Budget(name="b.toml", limits=limits, measure=QUICK), device="cpu")
    assert report.exit_code == 2
    assert report.checks[0].reason == (
        "could not be measured: instructions are counted on an emulated CPU, not on --device cpu: gate them with "
        "--device arm64:cortex-a53"
    )


def test_an_emulated_device_tells_instructions_alone(pair: Pair) -> None:
    limits = {"latency.p50_ms": 1.0, "memory.peak_bytes": 1e9}
    report = gate(pair.model, Budget(name="b.toml", limits=limits, measure=QUICK), device="arm64:cortex-a53")
    assert report.exit_code == 2
    for one, measure in zip(report.checks, ("latency", "memory"), strict=True):
        assert (
            f"tells nothing of {measure}: limit instructions there, and gate {measure} with --device cpu" in one.reason
        )
        assert "bench " not in one.reason


def test_the_gate_speaks_of_keys_of_the_budget() -> None:
    told = "give fewer --samples, a smaller --batch or a longer --timeout; take another core (--pin), or --device cpu"
    assert in_keys(told) == (
        "give fewer measure.samples, a smaller measure.batch or a longer measure.timeout_s; take another core "
        "(measure.pin), or --device cpu"
    )


def test_advice_of_the_gate_names_keys_that_a_budget_takes() -> None:
    assert in_budget("measure.")(runs=30, samples=300, min_seconds="1.5") == (
        "set measure.runs = 30, measure.samples = 300, measure.min_seconds = 1.5 in the budget"
    )
    assert in_budget("measure.instruction_")(runs=4, samples=24) == (
        "set measure.instruction_runs = 4, measure.instruction_samples = 24 in the budget"
    )
    assert {key.removeprefix("measure.") for key in KEYS.values()} <= SETTINGS.keys()


def test_milliseconds_over_their_limit_beside_other_processes_say_so(pair: Pair, generous: GateReport) -> None:
    assert generous.latency is not None
    host = replace(generous.latency.host, usable_cores=2)

    def reason(name: str, limit: float, load: float) -> str:
        latency = replace(generous.latency, host=replace(host, load_average_1min=load))
        done = check(name, limit, replace(evidence_of(pair, generous), latency=latency))
        assert done.verdict == ("within" if limit > 1 else "over")
        return done.reason

    assert "other processes were running, and they may be the cause" in reason("latency.p50_ms", 1e-9, 2.0)
    assert "other processes" not in reason("latency.p50_ms", 1e-9, 0.1)
    assert "other processes" not in reason("latency.p50_ms", 1e9, 2.0)
    assert "other processes" not in reason("latency.ratio", 1e-9, 2.0)


def test_what_a_system_hides_behind_the_runtimes_own_peak_is_not_measured(pair: Pair, generous: GateReport) -> None:
    """Where only the largest size is known, a model smaller than the peak of importing seems to take nothing."""
    assert generous.memory is not None

    def verdicts(method: str, over: int) -> list[str]:
        def hidden(result):
            (run,) = result.memory.runs
            run = replace(run, method=method, peak_rss_bytes=run.bare_rss_bytes + over)
            figures = replace(result.memory, runs=(run,), peak_over_bare_bytes=over, peak_rss_bytes=run.peak_rss_bytes)
            return replace(result, memory=figures)

        memory = replace(
            generous.memory, model=hidden(generous.memory.model), baseline=hidden(generous.memory.baseline)
        )
        evidence = replace(evidence_of(pair, generous), memory=memory)
        names = ("memory.peak_over_bare_bytes", "memory.ratio", "memory.peak_bytes")
        return [check(name, 1e12, evidence).verdict for name in names]

    assert verdicts("VmHWM", 1000) == ["within", "within", "within"]
    assert verdicts("VmHWM", 0) == ["not measured", "not measured", "within"]
    assert verdicts("getrusage", 1000) == ["not measured", "not measured", "within"]


def test_a_budget_is_not_held_by_pictures_of_one_pixel(make_convs) -> None:
    path = make_convs("open.onnx", size="side")
    budget = Budget(name="b.toml", limits={"memory.peak_bytes": 1e12}, measure=QUICK)
    report = gate(path, budget)
    assert report.outcome == "not measured"
    assert 'set measure.shapes = {"image" = [1, 3, 224, 224]}' in report.checks[0].reason
    sized = replace(budget, measure=replace(QUICK, shapes={"image": (1, 1, 8, 8)}))
    assert gate(path, sized).outcome == "within"


def test_what_holds_no_graph_is_no_model(pair: Pair, tmp_path) -> None:
    (tmp_path / "empty.onnx").touch()
    budget = Budget(name="b.toml", limits={"file.ratio": 1.0}, measure=QUICK)
    with pytest.raises(BenchError, match=r"empty.onnx is no ONNX file: it holds no graph"):
        gate(pair.model, budget, tmp_path / "empty.onnx")
    with pytest.raises(BenchError, match=r"empty.onnx is no ONNX file: it holds no graph"):
        gate(tmp_path / "empty.onnx", replace(budget, limits={"file.bytes": 1e9}))


def test_a_drop_as_large_as_allowed_is_within(make_convs) -> None:
    """In binary, 0.95 - 0.94 is 0.010000000000000009."""
    model, baseline = tell(make_convs("a.onnx"), test_accuracy="0.94"), tell(make_convs("b.onnx"), test_accuracy="0.95")
    for limit, verdict in ((0.01, "within"), (0.00999, "over")):
        budget = Budget(name="b.toml", limits={"accuracy.test_drop": limit}, measure=QUICK)
        assert gate(model, budget, baseline).checks[0].verdict == verdict


def test_activations_whose_best_order_is_not_proved_lie_between_the_bounds(pair: Pair, generous: GateReport) -> None:
    assert generous.memory is not None
    static = replace(
        generous.memory.model.static, peak_activation_bytes=200, lower_bound_bytes=100, peak_is_exact=False
    )
    memory = replace(generous.memory, model=replace(generous.memory.model, static=static))
    evidence = replace(evidence_of(pair, generous), memory=memory)
    checks = [check("memory.activation_bytes", limit, evidence) for limit in (99, 150, 200)]
    assert [one.verdict for one in checks] == ["over", "uncertain", "within"]
    assert checks[1].reason == (
        "200 bytes, bounds of the best order 100 bytes to 200 bytes: not distinguishable from the limit of 150 bytes"
    )
