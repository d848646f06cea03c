from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.loading import load_report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"format":"bench-report","version":1,"measure":"speed"}',
            "unknown measure 'speed'; known measures: latency, memory",
        ),
        ('{"format":"bench-report","version":2}', "bench-report version 2, but this bench reads version 1"),
        ('{"format":"bench-report","version":1,"measure":"memory"}', "missing created, missing device"),
        ("rubbish", "expected JSON"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(BenchError, match=message) as refusal:
        load_report(path)
    assert str(path) in str(refusal.value)


def test_a_report_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot read .*none.json"):
        load_report(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(BenchError, match="cannot read"):
        load_report(tmp_path / "binary")
