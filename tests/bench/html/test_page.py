import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from bench.html import Document, page

VOID = {"meta", "line", "rect", "circle", "path"}


class Checked(HTMLParser):
    """Every element is closed in its turn; what is shown is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(" ".join(data.split()))


def read(text: str) -> Checked:
    parser = Checked()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_every_kind_of_report_has_its_plots(documents: list[Document]) -> None:
    found = read(page(documents))
    assert found.count["section"] == len(documents)
    # Latency: distributions, processes, two strips of frames; the gate measured latency as well.
    assert found.count["svg"] == 8
    shown = set(found.text)
    timed, weighed = documents[0].report, documents[1].report
    for title in (
        *("Distribution of inference times", "Ratio of each process", "Cold start", "Throughput", "Frames every 2 ms"),
        *("Peak resident memory", "By the graph alone", "Time by operator", "Budget budget.toml"),
        *("Nodes of the model: small.onnx", "Nodes of the baseline: dense.onnx"),
    ):
        assert title in shown
    assert f"{timed.ratio.value:.3f}" in shown
    assert f"{weighed.model.memory.peak_rss_bytes / 2**20:.2f} MiB" in shown
    assert found.count["circle"] == 2 * len(timed.model.latency.runs)
    assert {"within", "over", "not measured"} <= shown
    assert "over budget" in shown


def test_the_page_needs_nothing_from_elsewhere(documents: list[Document]) -> None:
    text = page(documents)
    found = read(text)
    assert not found.count.keys() & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert re.findall(r"(?:https?:)?//\w", text) == []
    assert "@import" not in text
    assert "url(" not in text
    assert {value for name, value in found.attributes if name in ("src", "href")} == {
        f"#report-{number + 1}" for number in range(len(documents))
    }
    assert "default-src 'none'" in text
    assert len(text) < 400_000


def test_one_thread_is_one(documents: list[Document]) -> None:
    assert any(text.endswith("; 1 thread") for text in read(page(documents)).text)


def test_names_of_files_are_text(documents: list[Document]) -> None:
    hostile = '<script>alert("x")</script>&"\'{{ 7 * 7 }}'
    (name, report) = documents[0].name, documents[0].report
    model = replace(report.model, file=replace(report.model.file, file_name=hostile))
    text = page([Document(hostile + name, replace(report, model=model, warnings=(hostile,)))])
    assert "<script" not in text
    assert hostile in read(text).text


def test_a_model_alone_and_figures_that_are_not_known_have_a_page(documents: list[Document]) -> None:
    timed, weighed, profiled, judged = (document.report for document in documents)
    unknown = replace(weighed.model.static, peak_activation_bytes=None, unknown_because="a loop has no known length")
    alone = [
        Document("a", replace(timed, baseline=None, ratio=None, verdict=None, throughput=(), realtime=None)),
        Document("b", replace(weighed, model=replace(weighed.model, static=unknown), baseline=None, ratios=None)),
        Document("c", replace(profiled, baseline=None)),
        Document("d", replace(judged, latency=None, memory=None, baseline=None)),
    ]
    found = read(page(alone))
    assert "Median of each process" in found.text
    assert any("a loop has no known length." in text for text in found.text)
    assert found.count["svg"] == 2


def test_equal_samples_have_a_page(documents: list[Document]) -> None:
    timed = documents[0].report
    runs = tuple(replace(run, samples_ns=(1000,) * 5) for run in timed.model.latency.runs)
    times = replace(timed.model.latency, runs=runs, p50_ms=1e-3, p50_low_ms=1e-3, p50_high_ms=1e-3, p99_ms=1e-3)
    alone = replace(timed, model=replace(timed.model, latency=times), baseline=None, ratio=None, verdict=None)
    assert "NaN" not in page([Document("a", replace(alone, throughput=(), realtime=None))])


def test_the_command_writes_the_page_whole_or_not_at_all(documents, tmp_path: Path, bench_command, capsys) -> None:
    paths = [tmp_path / document.name for document in documents]
    for path, document in zip(paths, documents, strict=True):
        document.report.save(path)
    out = tmp_path / "page.html"
    assert bench_command("report", *paths, "--html", out) == 0
    assert out.read_text(encoding="utf-8") == page(documents)
    rubbish = tmp_path / "rubbish.json"
    rubbish.write_text('{"format": "else"}')
    bad = {
        (rubbish,): "expected a document of format 'bench-report'",
        (tmp_path / "none.json",): "cannot read",
        (paths[0], "--html", paths[0]): f"--html {paths[0]} would overwrite {paths[0]}",
    }
    assert bench_command("report", *paths, "--html", tmp_path) == 2
    assert f"for example {tmp_path / 'report.html'}" in capsys.readouterr().err
    for words, message in bad.items():
        target = () if "--html" in words else ("--html", out)
        assert bench_command("report", *words, *target) == 2
        assert message in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == page(documents)
