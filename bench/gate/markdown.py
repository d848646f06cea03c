"""The outcome as Markdown, for the comment on a pull request or a job's summary."""

import re

from bench.gate.limits import UNITS
from bench.gate.report import NOT_MEASURED, OVER, UNCERTAIN, WITHIN, Check, GateReport
from bench.protocol import Host

MARKS = {WITHIN: "✅ within", UNCERTAIN: "⚠️ uncertain", OVER: "❌ over", NOT_MEASURED: "❔ not measured"}
HEADLINES = {
    WITHIN: "✅ {model} is within its budget",
    UNCERTAIN: "⚠️ {model} is not over its budget, but a figure cannot be told from its limit",
    OVER: "❌ {model} is over its budget",
    NOT_MEASURED: "❔ {model} could not be measured",
}
ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|~@&])")


def markdown(report: GateReport) -> str:
    """A headline, a table of checks, what is doubtful, and where it was measured."""
    lines = [
        "### " + HEADLINES[report.outcome].format(model=_escaped(report.model.file_name)),
        "",
        "| check | measured | range | limit | |",
        "| --- | ---: | :---: | ---: | --- |",
        *(_row(check) for check in report.checks),
        "",
    ]
    lines += [
        f"- **{one.name}** {_escaped(one.reason)}" for one in report.checks if one.verdict in (OVER, NOT_MEASURED)
    ]
    lines += [f"- ⚠️ {_escaped(text)}" for text in report.warnings]
    lines += ["", f"<sub>{_footer(report)}</sub>", ""]
    return "\n".join(lines)


def _row(check: Check) -> str:
    unit = UNITS[check.unit]
    value = "" if check.value is None else unit.shown(check.value)
    exact = check.low is None or check.high is None or check.low == check.high
    spread = "" if exact else f"{check.low:{unit.spec}} – {check.high:{unit.spec}}"
    sign = "≥" if check.at_least else "≤"
    return f"| {check.name} | {value} | {spread} | {sign} {unit.shown(check.limit)} | {MARKS[check.verdict]} |"


def _footer(report: GateReport) -> str:
    parts = [f"budget {_escaped(report.budget)}", f"device {_escaped(report.device)}"]
    if report.baseline is not None:
        parts.append(f"baseline {_escaped(report.baseline.file_name)}")
    parts += [_host(measured.host, measured.settings.threads) for measured in report.measurements()[:1]]
    return " · ".join([*parts, f"{report.seconds:.0f} s", report.created])


def _host(host: Host, threads: int) -> str:
    kind = "emulated" if host.emulated else "native"
    cores = f"{threads} of {host.usable_cores} cores"
    return f"{_escaped(host.cpu_model)}, {host.architecture}, {kind}, {cores} · onnxruntime {host.onnxruntime}"


def _escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return ACTIVE.sub(lambda match: f"&#{ord(match[0])};", " ".join(text.split()))
