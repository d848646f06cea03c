"""The page in a real browser: nothing is cut off or wider than a phone, text can be read, both colour schemes work."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from bench.html import Document, page
from bench.report import ProfileReport

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE, DESK = 360, 1100

# The page in a frame of the width asked for; what is found is written into the title, which --dump-dom prints.
PROBE = """<!doctype html><meta charset="utf-8">
<iframe id="f" src="page.html" style="width:WIDTHpx;height:800px;border:0"></iframe><script>
document.getElementById("f").onload = (event) => {
  const doc = event.target.contentDocument, view = event.target.contentWindow, wide = doc.documentElement.clientWidth;
  const faults = [];
  for (const element of doc.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect(), inside = element.closest(".scroll, details:not([open])");
    if (!inside && box.width && (box.right > wide + 0.5 || box.left < -0.5))
      faults.push("wider than the page: " + element.tagName + " " + element.textContent.trim().slice(0, 40));
  }
  for (const svg of doc.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")];
    if (frame.width < 200 || frame.height < 50) faults.push("small plot");
    const boxes = texts.map((text) => text.getBoundingClientRect());
    boxes.forEach((box, index) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        faults.push("cut off: " + texts[index].textContent);
      if (box.height < 8) faults.push("too small: " + texts[index].textContent);
      boxes.slice(index + 1).forEach((other, next) => {
        const beside = box.left >= other.right || other.left >= box.right;
        if (!beside && box.top + 2 < other.bottom && other.top + 2 < box.bottom)
          faults.push("one over the other: " + texts[index].textContent + " / " + texts[index + 1 + next].textContent);
      });
    });
  }
  const colours = view.getComputedStyle(doc.body);
  document.title = JSON.stringify({
    faults, scroll: doc.documentElement.scrollWidth, client: wide, svgs: doc.querySelectorAll("svg").length,
    scrolled: [...doc.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth).length,
    background: colours.backgroundColor, text: colours.color,
    bars: [...doc.querySelectorAll(".track i")].filter((bar) => bar.getBoundingClientRect().width > 0).length,
  });
};
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed; apt-get install chromium")
    return found


def look(browser: str, folder: Path, width: int, *options: str) -> dict:
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)), encoding="utf-8")
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    words += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=5000", *options]
    done = subprocess.run(
        [*words, "--dump-dom", (folder / "probe.html").as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    (title,) = re.findall("<title>(.*?)</title>", done.stdout)
    return json.loads(unescape(title))


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(found: dict) -> float:
    pair = sorted((luminance(found["background"]), luminance(found["text"])))
    return (pair[1] + 0.05) / (pair[0] + 0.05)


def with_long_figures(document: Document) -> Document:
    """A profile of a large network's numbers."""
    report = document.report
    if not isinstance(report, ProfileReport):
        return document
    operators = tuple(
        replace(each, operator=f"LayerNorm{each.operator}", macs=123_456_789_012, gflops=1234.5)
        for each in report.model.profile.operators
    )
    model = replace(report.model, profile=replace(report.model.profile, operators=operators))
    return replace(document, report=replace(report, model=model))


def test_the_page_fits_phone_and_desk_in_light_and_dark(browser: str, documents: list[Document], tmp_path) -> None:
    (tmp_path / "page.html").write_text(page([*map(with_long_figures, documents)]), encoding="utf-8")
    phone = look(browser, tmp_path, PHONE)
    desk = look(browser, tmp_path, DESK, "--force-dark-mode")
    assert desk["scrolled"] == 0  # tables are there whole
    for found, width in ((phone, PHONE), (desk, DESK)):
        assert found["faults"] == []
        assert found["scroll"] <= found["client"] <= width
        assert found["svgs"] == 8
        assert found["bars"] > 20
        assert contrast(found) > 7  # WCAG's strictest level
    assert luminance(phone["background"]) > 0.8
    assert luminance(desk["background"]) < 0.05
