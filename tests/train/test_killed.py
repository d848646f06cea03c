"""``kill -9`` at random moments, amid the writing of checkpoints too: the run ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress.errors import ConfigError
from compress.files import leftovers
from compress.train.config import Config
from compress.train.session import train

HERE = Path(__file__).parent


def test_a_run_that_was_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path):
    command = [sys.executable, HERE / "killing.py", "1", tmp_path, f"{HERE / 'tiny_net.py'}:make"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 3
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in ("masked.safetensors", "model.safetensors", "plan.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    log, expected = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (killed, whole)
    )
    assert [line | {"seconds": 0} for line in log] == [line | {"seconds": 0} for line in expected]
    assert list(leftovers(killed)) == []


def test_what_was_killed_before_its_first_file_can_be_started_again(tiny, tmp_path: Path):
    config: Config = tiny()
    config.out.mkdir()
    (config.out / ".config.toml.4711.tmp").write_text("[mod")
    summary = train(config)
    assert summary["dead_share"] > 0
    assert list(leftovers(config.out)) == []


def test_another_programs_files_are_no_leftovers(tiny):
    config: Config = tiny()
    config.out.mkdir()
    (config.out / ".notes.tmp").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        train(config)
