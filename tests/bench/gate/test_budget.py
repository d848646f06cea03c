import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.gate.budget import SETTINGS, load_budget
from bench.gate.evidence import Measurement
from bench.gate.limits import LIMITS, UNITS

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "budget.toml"


def load(tmp_path: Path, text: str):
    path = tmp_path / "budget.toml"
    path.write_text(text, encoding="utf-8")
    return load_budget(path)


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(BenchError) as refusal:
        load(tmp_path, text)
    first, *rest = str(refusal.value).split("\n  ")
    assert first == f"budget {tmp_path / 'budget.toml'}: {len(rest)} fault{'s' if len(rest) > 1 else ''}"
    return rest


def test_limits_and_settings_are_read(tmp_path: Path) -> None:
    budget = load(
        tmp_path,
        """
        latency.p50_ms = 5
        memory = {peak_bytes = 64_000_000}
        [accuracy]
        test = 0.98
        [measure]
        threads = 4
        min_seconds = 1
        shapes = {"image" = [1, 3, 8, 8]}
        """,
    )
    assert budget.name == "budget.toml"
    assert budget.limits == {"latency.p50_ms": 5.0, "memory.peak_bytes": 64e6, "accuracy.test": 0.98}
    assert budget.measure == Measurement(threads=4, min_seconds=1.0, shapes={"image": (1, 3, 8, 8)})


def test_all_faults_are_told_at_once_with_the_near_key(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        """
        p50_ms = 3
        [latency]
        p50 = 5.0
        ratio = "half"
        p99_ms = 0
        [memori]
        peak_bytes = 5
        [accuracy]
        test = 98.5
        [measure]
        threads = 0
        run = 10
        runs = 3
        timeout_s = nan
        shapes = {x = [1, 0]}
        batch = true
        pin = [1, 1]
        provider = 3
        deadline_ms = 0
        tolerance = -1
        """,
    )
    assert [fault.partition(":")[0] for fault in found] == [
        *("p50_ms", "latency.p50", "latency.ratio", "latency.p99_ms", "memori.peak_bytes", "accuracy.test"),
        *(f"measure.{name}" for name in ("threads", "run", "runs", "timeout_s", "shapes")),
        *(f"measure.{name}" for name in ("batch", "pin", "provider", "deadline_ms", "tolerance")),
    ]
    told = dict(fault.split(": ", 1) for fault in found)
    assert told["p50_ms"].startswith(
        "unknown key (did you mean latency.p50_ms?); known sections: latency, instructions"
    )
    assert told["latency.p50"].startswith("unknown key (did you mean latency.p50_ms?); known: latency.p50_ms, ")
    assert told["latency.ratio"] == "got 'half', expected a number above 0"
    assert told["latency.p99_ms"] == "got 0, expected a number above 0"
    assert "did you mean memory.peak_bytes?" in told["memori.peak_bytes"]
    assert told["accuracy.test"] == "got 98.5, expected a share from 0 to 1, for example 0.98"
    assert told["measure.threads"] == "got 0, expected an integer of at least 1"
    assert "did you mean measure.runs?" in told["measure.run"]
    assert told["measure.runs"] == "got 3, expected an integer of at least 6"
    assert told["measure.timeout_s"] == "got nan, expected seconds above 0"
    assert told["measure.shapes"].endswith("{image = [1, 3, 224, 224]}, each 1 or more")
    assert told["measure.pin"] == "got [1, 1], expected different cores, for example [2, 3]"
    assert told["measure.deadline_ms"] == "got 0, expected milliseconds above 0"
    assert told["measure.batch"] == "got True, expected an integer of at least 1"


def test_missed_frames_need_a_deadline(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "[latency]\nmissed_share = 0.01\nlongest_run = 2")
    assert fault.startswith("latency.missed_share, latency.longest_run: set measure.deadline_ms")
    (fault,) = faults(tmp_path, "[file]\nbytes = 1\n[measure]\nperiod_ms = 33")
    assert fault.startswith("measure.period_ms: set measure.deadline_ms, too")
    budget = load(tmp_path, "[latency]\nmissed_share = 0\n[measure]\ndeadline_ms = 33\npin = [1]\nprovider = 'xnnpack'")
    assert (budget.measure.deadline_ms, budget.measure.pin, budget.measure.provider) == (33.0, (1,), "xnnpack")


def test_a_section_that_is_none_and_a_budget_without_limits_are_faults(tmp_path: Path) -> None:
    assert faults(tmp_path, "latency = 5") == ["latency: got 5, expected a section [latency]"]
    for text in ("", "[latency]", "[measure]\nthreads = 2"):
        assert faults(tmp_path, text) == ["no limit is given; write one, for example [latency] p50_ms = 5.0"]
    (nonsense,) = faults(tmp_path, "[weather]\nrain = 1")
    assert nonsense == (
        "weather.rain: unknown key; known sections: "
        + ", ".join(dict.fromkeys(k.partition(".")[0] for k in LIMITS))
        + ", measure"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[latency\n", r"budget .*budget.toml cannot be read: .*line 1"),
        (b"[file]\nbytes = 1\nbytes = 2", "cannot be read: Cannot overwrite a value"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
    ],
)
def test_what_is_no_toml_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "budget.toml"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=message):
        load_budget(path)


def test_a_missing_budget_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"budget file not found: .*none.toml"):
        load_budget(tmp_path / "none.toml")
    with pytest.raises(BenchError, match="cannot be read"):
        load_budget(tmp_path)
    with pytest.raises(BenchError, match="cannot be read"):
        load_budget(Path("a\0b"))


def test_every_setting_has_a_check() -> None:
    assert list(SETTINGS) == [field.name for field in fields(Measurement)]


def test_every_limit_has_a_unit_and_two_parts() -> None:
    for name, limit in LIMITS.items():
        assert name.count(".") == 1
        assert limit.unit in UNITS
        assert limit.what


def test_the_example_holds_and_so_do_its_commented_lines(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    budget = load_budget(EXAMPLE)
    assert set(budget.limits) < set(LIMITS)
    assert budget.measure == Measurement(shapes={})  # as its comment says
    whole = load(tmp_path, "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines()))
    assert len(whole.limits) == len(budget.limits) + text.count("\n# p") + 0
    assert tomllib.loads(text)["measure"].keys() <= SETTINGS.keys()


def test_the_document_lists_every_key() -> None:
    document = (EXAMPLE.parents[1] / "bench-gate.md").read_text()
    written = document.partition("<!-- limits -->")[2].partition("<!-- /limits -->")[0].strip().splitlines()[2:]
    rows = []
    for name, limit in LIMITS.items():
        needs = "; needs `--baseline`" if limit.needs_baseline else ""
        rows.append(f"| `{name}` | {'least' if limit.at_least else 'most'} | {limit.what}{needs} |")
    assert written == rows
    settings = document.partition("`[measure]` says")[2].partition("## ")[0]
    assert [name for name in SETTINGS if f"`{name}`" not in settings] == []


def test_a_limit_that_is_given_twice_is_a_fault(tmp_path: Path) -> None:
    for text in ('"file.bytes" = 1\n[file]\nbytes = 1e9', '"measure.runs" = 6\n[measure]\nruns = 7\n[file]\nbytes = 1'):
        (fault,) = faults(tmp_path, text)
        assert "given twice, in its section and as one quoted word" in fault


def test_numbers_beyond_all_bounds_are_faults(tmp_path: Path) -> None:
    for number in (f"1{'0' * 400}", "1e400", "nan"):
        (fault,) = faults(tmp_path, f"[file]\nbytes = {number}")
        assert fault.startswith("file.bytes: got ")
        assert fault.endswith("expected a number above 0")
        assert len(fault) < 120
    with pytest.raises(BenchError, match="cannot be read"):
        load(tmp_path, "a = " + "[" * 100_000)
