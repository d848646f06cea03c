"""JUnit XML and Markdown of the same outcomes."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench.cli.gate import WORDS
from bench.gate import GateReport
from bench.gate.junit import junit_xml
from bench.gate.markdown import markdown
from bench.gate.report import EXIT_CODES
from bench.html.gate import HEADLINES

# What CI systems read, by element: required attributes, and the children allowed, in order.
SHAPE = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        ["properties", "testcase", "system-out"],
    ),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "testcase": ({"classname", "name"}, ["error", "failure", "system-out"]),
    "error": ({"message", "type"}, []),
    "failure": ({"message", "type"}, []),
    "system-out": (set(), []),
}


def hold_to_shape(element: ElementTree.Element) -> None:
    required, children = SHAPE[element.tag]
    assert required <= element.attrib.keys()
    places = [children.index(child.tag) for child in element]
    assert places == sorted(places)
    for child in element:
        hold_to_shape(child)


@pytest.fixture
def mixed(generous: GateReport) -> GateReport:
    """One check of each verdict, and names of a hostile user."""
    verdicts = ("within", "uncertain", "over", "not measured")
    checks = tuple(
        replace(one, verdict=verdict, reason=f"{verdict} because")
        for one, verdict in zip(generous.checks, verdicts, strict=False)
    )
    checks = (*checks[:3], replace(checks[3], value=None, low=None, high=None, reason="bad \x1b[31m </failure> & ]]>"))
    model = replace(generous.model, file_name="a|b`<img src=x>`@team\x00\ud800\n## c.onnx")
    return replace(generous, checks=checks, model=model, outcome="over", warnings=("first", "second | third"))


def test_junit_has_a_case_for_each_check(mixed: GateReport) -> None:
    root = ElementTree.fromstring(junit_xml(mixed).encode())
    hold_to_shape(root)
    (suite,) = root
    for element in (root, suite):
        assert [element.get(key) for key in ("tests", "failures", "errors", "skipped")] == ["4", "1", "1", "0"]
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [check.name for check in mixed.checks]
    assert {case.get("classname") for case in cases} == {"bench.gate.budget.toml"}
    assert [[child.tag for child in case] for case in cases] == [["system-out"], ["system-out"], ["failure"], ["error"]]
    assert cases[1][0].text == "uncertain: uncertain because"
    assert cases[2][0].get("message") == f"{mixed.checks[2].name} over because"
    assert cases[3][0].text == "bad �[31m </failure> & ]]>"
    assert suite.find("system-out").text == "warning: first\nwarning: second | third"
    assert suite.get("timestamp") == mixed.created.removesuffix("+00:00")
    facts = {entry.get("name"): entry.get("value") for entry in suite.iter("property")}
    assert facts["device"] == "cpu"
    assert facts["host.onnxruntime"] == mixed.latency.host.onnxruntime


def test_junit_of_a_model_within_its_budget_has_no_failures(generous: GateReport) -> None:
    root = ElementTree.fromstring(junit_xml(replace(generous, warnings=())))
    hold_to_shape(root)
    assert (root.get("failures"), root.get("errors")) == ("0", "0")
    assert root.find("testsuite/system-out") is None
    assert len(root.findall(".//testcase")) == len(generous.checks)


def test_markdown_has_a_row_for_each_check_and_is_not_broken_by_names(mixed: GateReport) -> None:
    text = markdown(mixed)
    lines = text.splitlines()
    assert (
        lines[0]
        == "### ❌ a&#124;b&#96;&#60;img src=x&#62;&#96;&#64;team\x00\ud800 &#35;&#35; c.onnx is over its budget"
    )
    rows = [line for line in lines if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {6}
    assert len(rows) == 2 + len(mixed.checks)
    assert [row.rsplit("|", 2)[1].strip() for row in rows[2:]] == [
        *("✅ within", "⚠️ uncertain", "❌ over", "❔ not measured")
    ]
    assert "- ⚠️ second &#124; third" in lines
    assert f"- **{mixed.checks[2].name}** over because" in lines
    assert "budget.toml" in lines[-1]


@pytest.mark.parametrize("outcome", EXIT_CODES)
def test_every_outcome_has_its_headline(generous: GateReport, outcome: str) -> None:
    word = {"within": "is within its budget", "uncertain": "is not over its budget, but", "over": "is over its budget"}
    headline = markdown(replace(generous, outcome=outcome)).splitlines()[0]
    assert word.get(outcome, "could not be measured") in headline
    assert set(WORDS) == set(HEADLINES) == set(EXIT_CODES)


def test_markdown_shows_figures_ranges_and_limits(generous: GateReport) -> None:
    text = markdown(generous)
    size = generous.model.file_bytes
    assert f"| file.bytes | {size:,} bytes |  | ≤ 1,000,000,000 bytes | ✅ within |" in text
    ratio = generous.latency.ratio
    assert f"| latency.ratio | {ratio.value:.4g} | {ratio.low:.4g} – {ratio.high:.4g} | ≤ 100 | ✅ within |" in text
    assert "| accuracy.test | 0.9887 |  | ≥ 0.5 | ✅ within |" in text
