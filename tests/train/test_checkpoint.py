import random
from pathlib import Path

import pytest
import torch

from compress.errors import CheckpointError
from compress.train.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.arange(10_000.0), "position": {"epoch": 3, "loss_sum": 0.1}, "name": "x"})
    return path


def test_a_checkpoint_reads_back_the_same(saved: Path):
    state = load_checkpoint(saved)
    assert torch.equal(state["weights"], torch.arange(10_000.0))
    assert (state["position"], state["name"]) == ({"epoch": 3, "loss_sum": 0.1}, "x")
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(saved: Path, share: float):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt .* is truncated or no checkpoint; delete it"):
        load_checkpoint(saved)


def test_a_flipped_bit_in_the_weights_is_found(saved: Path):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged in its part"):
        load_checkpoint(saved)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 3, "evil": Path}, path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(path)


def test_another_format_is_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 0}, path)
    with pytest.raises(CheckpointError, match="has format 0, expected 3"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_failed_write_leaves_the_old_checkpoint(saved: Path):
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(saved, {"weights": torch.ones(3), "not data": lambda: None})
    assert load_checkpoint(saved)["position"]["epoch"] == 3
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_a_directory_that_is_gone_is_one_clear_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "gone" / "checkpoint.pt", {})


def test_random_states_go_back():
    state = random_state()
    first = (torch.rand(3).tolist(), random.random())
    set_random_state(state)
    assert (torch.rand(3).tolist(), random.random()) == first
