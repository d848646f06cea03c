import os
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.files import require_writable, write_whole


def test_a_file_is_written_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "new")
    write_whole(tmp_path / "a.json", "newer")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "newer")]


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(BenchError, match="no file was changed"):
        write_whole(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    require_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BenchError, match="is a folder"):
        require_writable(tmp_path)
    with pytest.raises(BenchError, match="make it first"):
        require_writable(tmp_path / "none" / "a.json")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    link = tmp_path / "latest.json"
    link.symlink_to("reports/monday.json")
    require_writable(link)
    for text in ("new", "newer"):
        write_whole(link, text)
        assert link.is_symlink()
        assert [(path.name, path.read_text()) for path in (tmp_path / "reports").iterdir()] == [("monday.json", text)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "reports"]


def test_a_device_or_a_pipe_is_refused_and_stays(tmp_path: Path) -> None:
    """A rename would put a file in the place of /dev/null, if the user may."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(BenchError, match="is a device or a pipe, which a file would replace"):
            require_writable(path)
        assert not path.is_file()


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="File name too long; choose another place"):
        require_writable(tmp_path / ("a" * 300))


def test_half_a_character_is_a_question_mark(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.md", "m\udcff.onnx")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "m?.onnx"
