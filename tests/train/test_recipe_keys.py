"""The documentation of recipes and image folders says what the code does."""

import importlib
from pathlib import Path

import pytest

from compress.data.folder import IMAGE_SUFFIXES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "training.md"


@pytest.fixture
def experiments(monkeypatch):
    """The modules of the folder, imported as its commands do it."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module


def test_the_table_of_keys_is_up_to_date(experiments):
    lines = experiments("recipe_keys").table()
    _, written, _ = experiments("marks").parts(DOCUMENT, "keys")
    assert written.strip().splitlines() == lines, "python experiments/recipe_keys.py --insert docs/training.md"
    rows = {line.split(" | ")[0].strip("| `"): line for line in lines}
    assert rows["schedule.epochs"].endswith(" | whole number from 1 | `10` | Passes over the training images. |")
    assert "above 0 below 1 | `0.999` where there is `[average]` |" in rows["average.decay"]
    assert "`true`, `false` | `true` |" in rows["run.curves"]
    assert "| must be given | `lenet300-100`, `lenet5`, " in rows["model.name"]


def test_the_accepted_images_are_listed():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [suffix for suffix in IMAGE_SUFFIXES if f"`{suffix}`" not in text] == []


def test_only_a_document_with_marks_is_written_to(experiments, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("before <!-- keys -->old<!-- /keys --> after <!-- demo -->")
    experiments("marks").insert(document, "keys", ["a", "b"])
    assert document.read_text() == "before <!-- keys -->\n\na\nb\n\n<!-- /keys --> after <!-- demo -->"
    with pytest.raises(SystemExit, match="expected the marks <!-- demo --> and <!-- /demo -->"):
        experiments("marks").insert(document, "demo", ["a"])
