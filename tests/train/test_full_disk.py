"""A file that cannot be written whole: the old one stays, and the run can be continued."""

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.errors import WriteError
from compress.train.checkpoint import load_checkpoint
from compress.train.config import Config
from compress.train.session import train
from full_disk import files_of

Tiny = Callable[..., Config]


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("missing", [1, pytest.param(100, marks=pytest.mark.slow), 5000])
def test_a_checkpoint_that_finds_no_room_leaves_the_old_one_and_the_run_goes_on(
    tiny: Tiny, tmp_path: Path, stopping: Callable, missing: int
):
    whole = train(tiny(out=tmp_path / "whole"))
    config = tiny(out=tmp_path / "parts")
    with stopping(3):
        train(config)
    checkpoint = config.out / "checkpoint.pt"
    old = checkpoint.read_bytes()
    with files_of(len(old) - missing), pytest.raises(WriteError) as caught:
        train(config, resume=True)
    told = str(caught.value)
    assert f"cannot write {checkpoint}: File too large; the old file is as it was" in told
    assert told.endswith(f"compress train --out {config.out} --resume")
    assert checkpoint.read_bytes() == old
    assert not [name for name in names(config.out) if name.endswith(".tmp")]
    assert train(config, resume=True)["hash"] == whole["hash"]


def test_a_log_that_finds_no_room_is_written_anew(tiny: Tiny, tmp_path: Path, stopping: Callable):
    """A log of a long run, and little room: half a line is left behind."""
    whole = train(tiny(out=tmp_path / "whole"))
    config = tiny(out=tmp_path / "parts")
    with stopping(9):
        train(config)
    log, checkpoint = config.out / "metrics.jsonl", config.out / "checkpoint.pt"
    first = log.read_text()
    log.write_text(first.replace("{", "{" + 40_000 * " ", 1))
    room = log.stat().st_size + len(first) // 2
    assert room > checkpoint.stat().st_size + 2000
    with files_of(room), pytest.raises(WriteError, match=r"metrics\.jsonl: File too large"):
        train(config, resume=True)
    assert load_checkpoint(checkpoint)["position"]["epoch"] == 1
    assert train(config, resume=True)["hash"] == whole["hash"]
    assert len(log.read_text().splitlines()) == 3


def test_results_that_find_no_room_are_written_by_the_resumed_run(tiny: Tiny, tmp_path: Path):
    whole = train(tiny(out=tmp_path / "whole"))
    config = tiny(out=tmp_path / "parts")
    train(config)
    for name in ("summary.json", "plan.json", "model.safetensors", "masked.safetensors"):
        (config.out / name).unlink()
    room = (tmp_path / "whole" / "plan.json").stat().st_size - 1
    assert (config.out / "config.toml").stat().st_size < room
    with files_of(room), pytest.raises(WriteError, match=r"cannot write .*File too large.*--resume"):
        train(config, resume=True)
    assert not (config.out / "summary.json").exists()
    assert train(config, resume=True)["hash"] == whole["hash"]
