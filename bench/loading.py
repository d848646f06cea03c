"""Read a report of any measure, and refuse one that contradicts itself."""

from pathlib import Path

from bench import codec
from bench.errors import BenchError
from bench.report import REPORTS, AnyReport, Report
from bench.saved import read_saved
from bench.sound import require_sound


def load_report(path: Path) -> AnyReport:
    """Read a report of any measure.

    Raises:
        BenchError: The file cannot be read, is no report of this version, or holds figures that are not those of its
            raw samples.
    """
    data = codec.parse(read_saved(path), Report.HEADER, str(path))
    measure = data.get("measure")
    if not isinstance(measure, str) or measure not in REPORTS:
        raise BenchError(f"{path}: unknown measure {measure!r:.60}; known measures: {', '.join(REPORTS)}")
    report = codec.read(REPORTS[measure], data, str(path))
    require_sound(report, str(path))
    return report
