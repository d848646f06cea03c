import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.train.checkpoint import load_checkpoint

TINY_NET = f"{Path(__file__).parents[1] / 'train' / 'tiny_net.py'}:make"
SHORT = (
    "--model", TINY_NET, "--dataset", "digits", "--limit", "200", "--penalty", "group-lasso",
    "--granularity", "coupled", "--strength", "0.2", "--epochs", "2", "--device", "cpu",
    "--set", "optimizer.lr=0.05", "--set", "run.threads=1", "--set", "run.curves=false",
)  # fmt: skip


def test_from_flags_to_a_table_and_the_next_commands(compress_command: Callable, tmp_path: Path):
    run = tmp_path / "run"
    outcome = compress_command("train", *SHORT, "--set=run.curves=true", "--seed=3", "--dense-baseline", "--out", run)
    assert outcome.code == 0
    assert (run / "curves.png").exists()
    summary = json.loads((run / "summary.json").read_text())
    for name in ("dense", "masked", "compact"):
        [row] = [line for line in outcome.out.splitlines() if line.split()[:1] == [name] and "loss" not in line]
        assert f"{summary['accuracy']['test'][name]:.2%}" in row
    assert f"{summary['parameters']['compact']:,}" in outcome.out
    assert outcome.out.rstrip().endswith(f"compress export {run} --onnx model.onnx")
    assert "dense 2/2  loss " in outcome.out
    assert "group-lasso 2/2  loss " in outcome.out


def test_compactions_are_told_between_the_epochs(compress_command: Callable, tmp_path: Path):
    net = f"{Path(TINY_NET.rpartition(':')[0]).parent / 'half_dead.py'}:resnet8"
    run = tmp_path / "run"
    outcome = compress_command("train", *SHORT, "--model", net, "--strength", "0", "--compact-every", "1", "--out", run)
    assert outcome.code == 0
    [line] = [line for line in outcome.out.splitlines() if line.startswith("  compacted")]
    assert line.startswith("  compacted  parameters 77,754 -> 19,810  MACs ")
    assert line.endswith(" s")


def test_widths_are_rounded(compress_command: Callable, tmp_path: Path):
    """With a target the channels that fill blocks count: it is met all the same."""
    net, run = TINY_NET.replace("tiny_net", "wide_net"), tmp_path / "run"
    options = ("--model", net, "--target-macs", "40%", "--round-to", "8", "--out", run)
    assert compress_command("train", *SHORT, *options).code == 0
    summary = json.loads((run / "summary.json").read_text())
    layers = summary["report"]["layers"].values()
    assert all(layer["after"] % 8 == 0 or layer["after"] == layer["before"] for layer in layers)
    assert any(layer["after"] < layer["before"] for layer in layers)
    assert not any(layer["kept"] for layer in layers)  # whole blocks are dead
    assert summary["macs"]["compact"] == pytest.approx(summary["budget"]["reached"], rel=1e-6)


def test_a_target_is_met(compress_command: Callable, tmp_path: Path):
    net, run = TINY_NET.replace("tiny_net", "wide_net"), tmp_path / "run"
    outcome = compress_command("train", *SHORT, "--model", net, "--target-macs", "40%", "--out", run)
    assert outcome.code == 0
    macs = json.loads((run / "summary.json").read_text())["macs"]
    assert macs["compact"] == pytest.approx(0.4 * macs["dense"], rel=0.02)
    [line] = [line for line in outcome.out.splitlines() if line.startswith("budget: ")]
    assert line.endswith(" of the macs were left when the penalty ended, 40.0% asked")


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (("--target-macs", "50%", "--target-params", "50%"), "give one of them"),
        (("--target-macs", "half"), "--target-macs half: expected a share"),
        (("--target-params", "900M"), "below 1 it is a share, else a number"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(compress_command: Callable, tmp_path: Path, targets, told: str):
    outcome = compress_command("train", *SHORT, *targets, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert told in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_flags_above_it(compress_command: Callable, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\nname = "{TINY_NET}"\n[data]\nname = "digits"\nlimit = 200\n[penalty]\nname = "none"\n'
        "[schedule]\nepochs = 9\n[run]\nthreads = 1\n"
    )
    run = tmp_path / "run"
    outcome = compress_command("train", "--recipe", recipe, "--epochs", "1", "--out", run)
    assert outcome.code == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1


def bad(*words: str, faults: tuple[str, ...]) -> object:
    return pytest.param(words, faults, id=" ".join(words)[:40])


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        bad("--model", "lenet6", "--dataset", "mnits", faults=("known: lenet300-100, lenet5, vgg11", "fashion-mnist")),
        bad("--penalty", "l7", "--granularity", "row", faults=("known: l0, l1", "known: weight, kernel")),
        bad("--penalty", "lp", "--set", "penalty.p=2", faults=("penalty.p: got 2", "above 0 and below 1")),
        bad("--compact-every", "-1", faults=("penalty.compact_every: got -1; expected greater than or equal to 0",)),
        bad("--strength", "-1", faults=("penalty.strength: got -1.0; expected greater than or equal to 0",)),
        bad("--set", "optimizer.lrr=1", faults=("optimizer.lrr: unknown key (did you mean optimizer.lr?)",)),
        bad("--recipe", "missing.toml", faults=("cannot read the recipe missing.toml",)),
        bad("--dataset", "mnist", "--data-dir", "missing", faults=("missing", "MNIST/raw")),
        bad(
            "--dataset", "missing/folder", faults=("nor is there a folder", "/missing/folder (expected train/<class>/")
        ),
        bad("--model", "missing.py:make", faults=("there is no file missing.py",)),
        bad("--model", "torchvision:resnet81", "--image-size", "32", faults=("resnet18",)),
        bad("--model", "timm:resnet81", faults=("did you mean", "resnet18")),
        bad("--model", "lenet5", faults=("lenet5: image_size is 8, must be at least 16",)),
        bad("--set", "optimizer.lr=1e30", "--set", "run.threads=1", faults=("diverged at step", "optimizer.lr=")),
        bad("--set", "data.validation_share=0.001", faults=("validation_share",)),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    compress_command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    faults: tuple[str, ...],
):
    monkeypatch.chdir(tmp_path)
    outcome = compress_command("train", *SHORT, *arguments, "--out", "run")
    assert outcome.code == 2
    assert outcome.err.startswith("compress: ")
    assert [fault for fault in faults if fault not in outcome.err] == []
    assert "Traceback" not in outcome.err + outcome.out
    diverged = "nan" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if diverged else [])


UNTRACEABLE_NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images):
        features = self.convolution(images)
        if features.mean() > 0:
            features = features * 2
        return self.classifier(features.mean((2, 3)))

def make(num_classes):
    return Net(num_classes)
"""


@pytest.mark.parametrize(
    "penalty", [("--penalty", "none"), ("--granularity", "kernel"), ("--granularity", "coupled")], ids="-".join
)
def test_a_network_that_cannot_be_compacted_is_not_trained(compress_command: Callable, tmp_path: Path, penalty: tuple):
    file, run = tmp_path / "net.py", tmp_path / "run"
    file.write_text(UNTRACEABLE_NET)
    outcome = compress_command("train", *SHORT, *penalty, "--model", f"{file}:make", "--out", run)
    assert outcome.code == 2
    assert "Net could not be captured by torch.export with inputs of shape (1, 1, 8, 8)" in outcome.err
    assert "control flow" in outcome.err
    assert "loss" not in outcome.out
    assert not run.exists()


def test_a_corrupt_image_names_its_file(compress_command: Callable, tmp_path: Path):
    from PIL import Image

    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / "train" / name
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")
    broken = tmp_path / "photos" / "train" / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    outcome = compress_command(
        "train", "--model", TINY_NET, "--dataset", tmp_path / "photos", "--out", tmp_path / "run",
        "--set", "data.validation_share=0.3",
    )  # fmt: skip
    assert outcome.code == 2
    assert str(broken) in outcome.err
    assert not (tmp_path / "run").exists()


def test_resume_without_a_run_is_refused(compress_command: Callable, tmp_path: Path):
    outcome = compress_command("train", "--resume")
    assert (outcome.code, outcome.err) == (
        2, "compress: --resume: say which run, --out RUN, or give its --recipe again\n",
    )  # fmt: skip
    outcome = compress_command("train", "--resume", "--out", tmp_path / "none")
    assert outcome.code == 2
    assert "no run to resume" in outcome.err


def test_resume_with_another_recipe_names_the_changes(compress_command: Callable, tmp_path: Path):
    run = tmp_path / "run"
    assert compress_command("train", *SHORT, "--out", run).code == 0
    outcome = compress_command("train", "--out", run, "--resume", "--epochs", "5")
    assert outcome.code == 2
    assert "schedule.epochs: 2 -> 5" in outcome.err
    again = compress_command("train", *SHORT, "--out", run)
    assert again.code == 2
    assert f"compress train --out {run} --resume" in again.err


def start(run: Path, *arguments: str) -> subprocess.Popen[str]:
    program = "from compress.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "train", "--out", str(run), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_ctrl_c_while_the_end_is_computed_tells_how_to_go_on(compress_command: Callable, tmp_path: Path):
    run = tmp_path / "run"
    stopped = start(run, *SHORT)
    wait_for(run / "masked.safetensors", stopped)  # written when training has ended, before the compaction
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=120)
    assert (stopped.returncode, err) == (130, f"stopped; to continue: compress train --out {run} --resume\n")
    assert "group-lasso 2/2  loss " in out
    assert not (run / "summary.json").exists()
    resumed = compress_command("train", "--out", run, "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert (run / "summary.json").exists()


def test_ctrl_c_and_resume_end_as_if_nothing_had_happened(compress_command: Callable, tmp_path: Path):
    # Two images a step: an epoch lasts long enough to be hit in its middle.
    settings = ("--set", "schedule.batch_size=2", "--set", "optimizer.lr=0.02")
    arguments = (*SHORT, "--epochs", "4", "--strength", "0.02", *settings)
    stopped = start(tmp_path / "parts", *arguments)
    wait_for(tmp_path / "parts" / "metrics.jsonl", stopped)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130
    assert err.rstrip().endswith(f"stopped; to continue: compress train --out {tmp_path / 'parts'} --resume")
    position = load_checkpoint(tmp_path / "parts" / "checkpoint.pt")["position"]
    assert 0 < position["epoch"] < 4

    resumed = compress_command("train", "--out", tmp_path / "parts", "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert f"going on after epoch {position['epoch']}, step {position['step']}" in resumed.out
    assert compress_command("train", "--out", tmp_path / "whole", *arguments).code == 0
    dead_share = json.loads((tmp_path / "whole" / "summary.json").read_text())["dead_share"]
    assert 0 < dead_share < 1
    for name in ("masked.safetensors", "model.safetensors"):
        ours, theirs = load_file(tmp_path / "parts" / name), load_file(tmp_path / "whole" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
