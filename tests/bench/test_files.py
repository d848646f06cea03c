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
