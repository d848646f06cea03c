"""Files are written whole or not at all, and bad places are refused beforehand."""

import resource
import sys
from pathlib import Path

import pytest

from export.errors import ExportError
from export.files import require_writable, write_all


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "m.onnx"
    for content in (b"one", b"two"):
        write_all({path: content})
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_writable_path_is_left_alone(tmp_path):
    path = tmp_path / "m.onnx"
    require_writable(path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"older")
    require_writable(path)
    assert path.read_bytes() == b"older"


def test_bad_places_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, message in (
        (tmp_path, "is a folder"),
        (Path(), "is a folder"),
        (Path("/"), "is a folder"),
        (tmp_path / "missing" / "m.onnx", "does not exist"),
        (tmp_path / "file" / "m.onnx", "does not exist"),
        (tmp_path / ("long" * 100), "File name too long"),
    ):
        with pytest.raises(ExportError, match=message):
            require_writable(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder that not even the superuser can fill")
def test_read_only_folder_is_refused():
    with pytest.raises(ExportError, match=r"cannot write /proc/self/m\.onnx"):
        require_writable(Path("/proc/self/m.onnx"))


def test_a_folder_in_one_of_the_places_changes_nothing(tmp_path):
    first, second = tmp_path / "m.onnx.json", tmp_path / "m.ort"
    first.write_bytes(b"older")
    second.mkdir()
    with pytest.raises(ExportError, match=r"m\.ort: it is a folder; no file was changed"):
        write_all({first: b"new", second: b"new"})
    assert first.read_bytes() == b"older"
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_disk_that_is_full_changes_nothing(tmp_path):
    path = tmp_path / "m.onnx"
    other = tmp_path / "m.onnx.json"
    path.write_bytes(b"older")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ExportError, match=r"cannot write the 100000 bytes of .*: File too large; no file"):
            write_all({other: b"short", path: b"x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]
