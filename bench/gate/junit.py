"""The outcome as JUnit XML: one test case a check.

There is no standard; this is the part that Jenkins, GitLab, Azure and GitHub's report actions read alike:
``testsuites`` with ``testsuite``, ``testcase`` with ``classname`` and ``name``, ``failure`` for a limit that is broken
and ``error`` for one that could not be measured. A figure that cannot be told from its limit passes, and says so in
``system-out``.
"""

import re
from xml.etree import ElementTree

from bench.gate.report import NOT_MEASURED, OVER, Check, GateReport

# Whatever is outside of XML 1.0's Char, https://www.w3.org/TR/xml/#charsets, cannot be written, escaped or not.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

PROBLEMS = {OVER: "failure", NOT_MEASURED: "error"}


def junit_xml(report: GateReport) -> str:
    """The document, declaration included."""
    verdicts = [check.verdict for check in report.checks]
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count(OVER)),
        "errors": str(verdicts.count(NOT_MEASURED)),
        "skipped": "0",
        "time": f"{report.seconds:.3f}",
    }
    suites = ElementTree.Element("testsuites", {"name": "bench gate", **counts})
    when = report.created.partition("+")[0]  # the format's dateTime has no zone; it is UTC
    name = _text(f"{report.model.file_name} on {report.device}")
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name, "timestamp": when, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(report).items():
        ElementTree.SubElement(properties, "property", name=key, value=_text(value))
    for check in report.checks:
        _case(suite, check, f"bench.gate.{report.budget}")
    if report.warnings:
        ElementTree.SubElement(suite, "system-out").text = _text("\n".join(f"warning: {w}" for w in report.warnings))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, check: Check, class_name: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_text(class_name), name=check.name)
    if check.verdict in PROBLEMS:
        told = ElementTree.SubElement(
            case, PROBLEMS[check.verdict], message=_text(f"{check.name} {check.reason}"), type=check.verdict
        )
        told.text = _text(check.reason)
    else:
        ElementTree.SubElement(case, "system-out").text = _text(f"{check.verdict}: {check.reason}")


def _properties(report: GateReport) -> dict[str, str]:
    found = {"device": report.device, "budget": report.budget, "model.sha256": report.model.sha256}
    if report.baseline is not None:
        found |= {"baseline": report.baseline.file_name, "baseline.sha256": report.baseline.sha256}
    for measured in report.measurements()[:1]:
        host = measured.host
        found |= {"host.cpu_model": host.cpu_model, "host.onnxruntime": host.onnxruntime}
    return found


def _text(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
