"""Processes that train together: what they make is what one process makes of the same batches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.train.recipe import resolve
from compress.train.rundir import CHECKPOINT, MASKED, METRICS, PLAN, SUMMARY
from compress.train.session import train
from compress.train.world import World

PLAIN_NET = f"{Path(__file__).parent / 'plain_net.py'}:make"
TINY_NET = f"{Path(__file__).parent / 'tiny_net.py'}:make"
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def settings(*, model: str = PLAIN_NET, epochs: int = 4, batch: int = 32) -> list[str]:
    values = {
        "model.name": model,
        "data.name": "digits",
        "data.limit": 214,
        "penalty.name": "group-lasso",
        "penalty.strength": 0.4,
        "penalty.group_weights": "none",
        "penalty.warmup_epochs": 1,
        "penalty.compact_every": 1,
        "optimizer.lr": 0.1,
        "schedule.batch_size": batch,
        "schedule.epochs": epochs,
        "run.curves": "false",
        "run.device": "cpu",
        "run.threads": 1,
    }
    return [f"{key}={value}" for key, value in values.items()]


def train_alone(out: Path, given: list[str]) -> None:
    train(resolve(flags={"run.out": out}, settings=given))


def command(out: Path, given: list[str]) -> list[str]:
    """Two processes that train together."""
    compress = ["-m", "compress", "train", f"--out={out}", *(f"--set={setting}" for setting in given)]
    return [sys.executable, *TOGETHER, *compress]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Gradients, proximal steps and compactions: the same weights up to rounding, the same zeros, the same plan."""
    one, two = tmp_path / "one", tmp_path / "two"
    train_alone(one, settings())
    done = run(command(two, settings()))
    assert done.returncode == 0, done.stderr
    assert files(one) == files(two)
    assert done.stdout.count("run directory:") == 1
    expected, got = load_file(one / MASKED), load_file(two / MASKED)
    assert any(bool((tensor == 0).any()) for tensor in expected.values())
    for name, tensor in expected.items():
        assert torch.equal(tensor == 0, got[name] == 0)
        assert torch.allclose(tensor, got[name], rtol=1e-4, atol=1e-6)
    kept = [json.loads((out / PLAN).read_text())["parameters"] for out in (one, two)]
    assert kept[0] == kept[1]
    accuracy = [json.loads((out / SUMMARY).read_text())["accuracy"] for out in (one, two)]
    assert accuracy[0] == accuracy[1]


@pytest.mark.slow  # test_killed.py does it to one process
def test_after_kill_9_they_go_on_to_the_same_end(tmp_path: Path) -> None:
    """Statistics of BatchNorm and dropout included; all processes are killed, the second one is told where it was."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = settings(model=TINY_NET, epochs=6)
    assert run(command(whole, given)).returncode == 0
    arguments = command(killed, given)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    limit_s = time.monotonic() + 120
    while not (killed / CHECKPOINT).exists() and time.monotonic() < limit_s:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (killed / CHECKPOINT).exists()
    assert not (killed / SUMMARY).exists()
    done = run([*arguments, "--resume"])
    assert done.returncode == 0, done.stderr
    expected, got = load_file(whole / MASKED), load_file(killed / MASKED)
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    done = run(command(tmp_path / "run", settings(batch=3)))
    assert done.returncode != 0
    assert "3 images cannot be shared among 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_one_process_takes_batches_of_one_image(tmp_path: Path) -> None:
    gentle = ["data.limit=40", "penalty.strength=0", "optimizer.lr=0.01"]
    train_alone(tmp_path / "run", [*settings(epochs=1, batch=1), *gentle])
    assert len((tmp_path / "run" / METRICS).read_text().splitlines()) == 1


@pytest.mark.parametrize(("count", "size"), [(7, 2), (8, 4), (2, 3), (0, 2)])
def test_shares_are_a_partition(count: int, size: int) -> None:
    shares = [list(range(count))[World(rank, size).share(count)] for rank in range(size)]
    assert sum(shares, []) == list(range(count))  # noqa: RUF017 - four short lists
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
