import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from compress.pruning import Target
from compress.pruning.run import Task, prune_run
from compress.train.checkpoint import load_checkpoint
from compress.train.interrupt import StopRequest
from compress.train.recipe import resolve
from compress.train.rundir import open_run
from compress.train.session import train

TINY_NET = f"{Path(__file__).parents[1] / 'train' / 'tiny_net.py'}:make"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network on 200 digits, pruned to 60% of its channels."""
    root = tmp_path_factory.mktemp("runs")
    flags = {
        "model.name": TINY_NET,
        "data.name": "digits",
        "data.limit": 200,
        "penalty.name": "none",
        "optimizer.lr": 0.05,
        "schedule.epochs": 3,
        "run.device": "cpu",
        "run.threads": 1,
        "run.curves": False,
        "run.out": root / "dense",
    }
    train(resolve(flags=flags))
    prune_run(root / "dense", root / "pruned", Task(Target("keep-ratio", 0.6)))
    return root / "pruned"


def test_a_pruned_run_is_trained_on(compress_command: Callable, pruned: Path, tmp_path: Path):
    out = tmp_path / "tuned"
    outcome = compress_command("finetune", pruned, "--out", out, "--epochs", 2, "--learning-rate", "0.02")
    assert (outcome.code, outcome.err) == (0, "")
    before, after = open_run(pruned), open_run(out)
    assert after.config.schedule.epochs == 2
    assert after.config.optimizer.lr == 0.02
    assert after.config.penalty.name == "none"
    assert after.plan().parameters == before.plan().parameters
    assert after.summary["macs"] == before.summary["macs"]
    was = before.summary["accuracy"]["test"]["compact"]
    assert after.summary["origin"]["finetune"]["accuracy_before"]["test"] == was
    now = after.summary["accuracy"]["test"]["compact"]
    assert f"test accuracy: {was:.2%} before, {now:.2%} now" in outcome.out
    assert "finetune 2/2  loss " in outcome.out
    assert outcome.out.rstrip().endswith(f"compress export {out} --onnx model.onnx")
    for command in (("inspect", out), ("export", out, "--onnx", tmp_path / "tuned.onnx")):
        assert compress_command(*command).code == 0


def test_a_penalty_takes_more_channels_away(compress_command: Callable, pruned: Path, tmp_path: Path):
    out = tmp_path / "sparser"
    options = ("--penalty", "l0", "--strength", "3", "--epochs", 2)
    assert compress_command("finetune", pruned, "--out", out, *options).code == 0
    before, after = open_run(pruned), open_run(out)
    assert 0 < after.summary["dead_share"] < 1
    assert after.summary["macs"]["compact"] < before.summary["macs"]["compact"]
    images = after.validation_batch(8)
    with torch.no_grad():
        assert torch.allclose(after.model()(images), after.dense_model()(images), rtol=0, atol=1e-5)


ROUNDS = ("--penalty", "group-lasso", "--strength", "0.01", "--epochs", 2, "--rounds", 2)
HALF = ("--set", "penalty.budget.target=0.7", "--set", "penalty.warmup_epochs=0")


def test_each_round_trains_what_the_last_one_left(compress_command: Callable, pruned: Path, tmp_path: Path):
    """A budget below 1 is a share of the network of its own round."""
    out, first = tmp_path / "small", tmp_path / "small-round1"
    outcome = compress_command("finetune", pruned, "--out", out, *ROUNDS, *HALF)
    assert (outcome.code, outcome.err) == (0, "")
    runs = [open_run(path) for path in (pruned, first, out)]
    macs = [run.summary["macs"]["compact"] for run in runs]
    for before, after, run in zip(macs, macs[1:], runs[1:], strict=False):
        budget = run.summary["budget"]
        assert (budget["given"], budget["reached"]) == (before, after)
        assert budget["target"] == pytest.approx(0.7 * before)
        assert after < 0.8 * before  # channels are whole, and the network is tiny
    assert [run.summary["origin"]["run"] for run in runs[1:]] == [str(pruned), str(first)]
    assert f"round 2 of 2: {first} -> {out}" in outcome.out
    assert re.search(rf"round 2 .* {macs[2]:,}\s*\n", outcome.out)
    was, now = (run.summary["accuracy"]["test"]["compact"] for run in (runs[0], runs[2]))
    assert f"test accuracy: {was:.2%} before, {now:.2%} now" in outcome.out
    images = runs[2].validation_batch(8)
    with torch.no_grad():
        assert torch.allclose(runs[2].model()(images), runs[2].dense_model()(images), rtol=0, atol=1e-5)


def test_rounds_go_on_where_they_were_stopped(
    compress_command: Callable, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert compress_command("finetune", pruned, "--out", whole, *ROUNDS, *HALF).code == 0
    steps = 2 * 6  # of the first round
    asked = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__bool__", lambda _: next(asked) == steps + 3)
        stopped = compress_command("finetune", pruned, "--out", parts, *ROUNDS, *HALF)
    assert stopped.code == 130
    assert (tmp_path / "parts-round1" / "summary.json").exists()
    assert not (parts / "summary.json").exists()
    told = stopped.err.rstrip().rpartition("stopped; to continue: compress ")[2]
    resumed = compress_command(*shlex.split(told))
    assert (resumed.code, resumed.err) == (0, "")
    ours, theirs = (load_file(path / "model.safetensors") for path in (parts, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_rounds_are_refused_before_the_first_where_the_last_has_no_room(
    compress_command: Callable, pruned: Path, tmp_path: Path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    outcome = compress_command("finetune", pruned, "--out", tmp_path / "out", *ROUNDS)
    assert outcome.code == 2
    assert "is not empty" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_new_run_lies_beside_the_old_one(compress_command: Callable, pruned: Path):
    assert compress_command("finetune", pruned, "--epochs", 1).code == 0
    assert open_run(pruned.with_name("pruned-finetuned")).summary["origin"]["run"] == str(pruned)
    again = compress_command("finetune", pruned, "--epochs", 1)
    assert again.code == 2
    assert f"compress finetune {pruned} --out {pruned}-finetuned --resume" in again.err


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--epochs", 0), "schedule.epochs: got 0"),
        (("--learning-rate", "-1"), "optimizer.lr: got -1.0"),
        (("--penalty", "l7"), "penalty.name: got 'l7'"),
        (("--set", "run.seed=5"), "run.seed: 0 -> 5"),
        (("--set", "data.validation_share=0.3"), "data.validation_share: 0.1 -> 0.3"),
        (("--set", "model.name=lenet5"), "is fine-tuned with its own network, images and split"),
        (("--set", "optimizer.lrr=1"), "did you mean optimizer.lr?"),
        (("--resume",), "no run to resume"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(
    compress_command: Callable, pruned: Path, tmp_path: Path, options: tuple, fault: str
):
    outcome = compress_command("finetune", pruned, "--out", tmp_path / "out", *options)
    assert outcome.code == 2
    assert fault in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_augmentation_may_change(compress_command: Callable, pruned: Path, tmp_path: Path):
    options = ("--epochs", 1, "--set", "data.augment.pad=1")
    assert compress_command("finetune", pruned, "--out", tmp_path / "out", *options).code == 0


def test_a_directory_that_is_no_run_is_refused(compress_command: Callable, tmp_path: Path):
    outcome = compress_command("finetune", tmp_path)
    assert outcome.code == 2
    assert "is no run directory" in outcome.err


def start(source: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from compress.cli import main; main()", "finetune", source, "--out", out, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )


def test_ctrl_c_and_resume_end_as_if_nothing_had_happened(compress_command: Callable, pruned: Path, tmp_path: Path):
    # Two images a step: an epoch lasts long enough to be hit in its middle.
    arguments = ("--epochs", "4", "--set", "schedule.batch_size=2")
    out = tmp_path / "parts"
    stopped = start(pruned, out, *arguments)
    while not (out / "metrics.jsonl").exists():
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130
    assert err.rstrip().endswith(f"stopped; to continue: compress finetune {pruned} --out {out} --resume")
    position = load_checkpoint(out / "checkpoint.pt")["position"]
    assert 0 < position["epoch"] < 4
    wrong = compress_command("train", "--out", out, "--resume")
    assert wrong.code == 2
    assert f"continue it with: compress finetune {pruned} --out {out} --resume" in wrong.err

    resumed = compress_command("finetune", pruned, "--out", out, "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert f"going on after epoch {position['epoch']}, step {position['step']}" in resumed.out
    assert compress_command("finetune", pruned, "--out", tmp_path / "whole", *arguments).code == 0
    ours, theirs = (load_file(path / "model.safetensors") for path in (out, tmp_path / "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert json.loads((out / "summary.json").read_text())["accuracy"]["test"]["compact"] > 0


@pytest.mark.parametrize("named", ["by its path", "by --data-dir"])
def test_images_that_were_moved_are_named_anew(compress_command: Callable, tmp_path: Path, named: str):
    generator = np.random.default_rng(0)
    images = tmp_path / "images"
    for split, label in itertools.product(("train", "test"), ("cats", "dogs")):
        folder = images / split / label
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 128, (12, 12, 3), dtype=np.uint8) + 127 * (label == "dogs")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    dense, pruned, tuned, moved = (tmp_path / name for name in ("dense", "pruned", "tuned", "moved"))
    data = ("--dataset", images) if named == "by its path" else ("--dataset", "folder", "--data-dir", images)
    recipe = ("--epochs", 1, "--penalty", "none", "--device", "cpu", "--set", "run.threads=1")
    trained = compress_command("train", "--model", TINY_NET, *data, *recipe, "--out", dense)
    assert (trained.code, trained.err) == (0, "")
    images.rename(moved)
    gone = compress_command("prune", dense, "--keep-ratio", "0.5", "--out", pruned)
    assert gone.code == 2
    assert str(images) in gone.err
    assert not pruned.exists()
    assert compress_command("prune", dense, "--keep-ratio", "0.5", "--out", pruned, "--data-dir", moved).code == 0
    assert compress_command("finetune", pruned, "--out", tuned, "--data-dir", moved).code == 0
    assert open_run(tuned).config.data.dir == moved
    moved.rename(images)
    again = compress_command("finetune", tuned, "--out", tmp_path / "again", "--data-dir", images)
    assert (again.code, again.err) == (0, "")
