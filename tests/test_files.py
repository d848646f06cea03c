from pathlib import Path

import pytest

from compress.errors import CheckpointError
from compress.files import write_atomic, write_json, write_text


def test_a_write_that_fails_half_way_leaves_the_old_content_alone(tmp_path: Path):
    path = tmp_path / "file"
    write_text(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"cannot write .*file: No space left on device; the old file is as it"):
        write_atomic(path, half)
    with pytest.raises(CheckpointError, match=r"cannot write .*none: No space left on device$"):
        write_atomic(tmp_path / "none", half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
