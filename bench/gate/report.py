"""The outcome of a gate, with every measurement it rests on."""

from dataclasses import dataclass
from typing import ClassVar

from bench import codec
from bench.gate.evidence import Measurement
from bench.onnx_file import OnnxFile
from bench.report import InstructionsReport, LatencyReport, MemoryReport
from bench.saved import Saved

WITHIN, UNCERTAIN, OVER, NOT_MEASURED = "within", "uncertain", "over", "not measured"

EXIT_CODES = {WITHIN: 0, UNCERTAIN: 0, OVER: 1, NOT_MEASURED: 2}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit and what became of it.

    Attributes:
        name: A key of ``bench.gate.limits.LIMITS``.
        unit: A key of ``bench.gate.limits.UNITS``.
        limit: As the budget says.
        at_least: The limit is the smallest good figure, not the largest.
        value: The figure; None where it could not be measured.
        low: Lower end of the range that it lies in; the figure itself for exact ones.
        high: Upper end.
        verdict: ``within``, ``uncertain`` (the range holds the limit), ``over`` or ``not measured``.
        reason: The verdict in words, with the figures.
    """

    name: str
    unit: str
    limit: float
    at_least: bool
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class GateReport(Saved):
    """All checks of a budget on one model.

    Attributes:
        created: UTC, ISO 8601.
        device: As given with ``--device``.
        budget: The budget file's name.
        seconds: That it took.
        measure: How it was measured.
        outcome: ``over`` if any check is, else ``not measured`` if any check is, else ``uncertain``, else ``within``.
        warnings: What makes the figures doubtful.
        latency: The report that the checks of latency rest on; None where there is none.
        memory: Likewise.
        instructions: Likewise.
    """

    HEADER: ClassVar[codec.Header] = ("bench-gate", 1)

    created: str
    device: str
    budget: str
    seconds: float
    measure: Measurement
    model: OnnxFile
    baseline: OnnxFile | None
    outcome: str
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    latency: LatencyReport | None
    memory: MemoryReport | None
    instructions: InstructionsReport | None

    @property
    def exit_code(self) -> int:
        """0 within budget or uncertain, 1 over it, 2 could not be measured."""
        return EXIT_CODES[self.outcome]

    def measurements(self) -> list[LatencyReport | MemoryReport | InstructionsReport]:
        """The reports there are."""
        return [report for report in (self.latency, self.memory, self.instructions) if report is not None]
