import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from compress.cli.tables import console, summary_table

TINY_NET = f"{Path(__file__).parents[1] / 'train' / 'tiny_net.py'}:make"


def test_a_run_shows_its_layers_before_and_after(compress_command: Callable, tmp_path: Path):
    run = tmp_path / "run"
    trained = compress_command(
        "train", "--model", TINY_NET, "--dataset", "digits", "--limit", 200, "--penalty", "group-lasso", "--strength",
        "0.2", "--epochs", 2, "--out", run, "--set", "optimizer.lr=0.05", "--set", "run.threads=1",
    )  # fmt: skip
    assert trained.code == 0
    alive = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["live_groups"]
    outcome = compress_command("inspect", run)
    assert outcome.code == 0
    rows = {line.split()[0]: line.split()[1:4] for line in outcome.out.splitlines() if line.strip()}
    assert rows["features.0"] == ["8", str(alive["features.0"]), str(8 - alive["features.0"])]
    assert rows["features.4"] == ["12", str(alive["features.4"]), str(12 - alive["features.4"])]
    assert rows["classifier.2"] == ["10", "10", "0"]
    document = json.loads(compress_command("inspect", run, "--json").out)
    assert document["changes"] == []
    layers = {layer.pop("layer"): layer for layer in document["layers"]}
    assert layers["features.0"] == {
        "before": 8,
        "after": alive["features.0"],
        "dead": 8 - alive["features.0"],
        "kept": {},
    }


def test_json_says_what_became_of_the_network(compress_command: Callable, tmp_path: Path):
    """A run whose report says that a layer is constant and that channels were selected."""
    run = tmp_path / "run"
    assert (
        compress_command(
            "train", "--model", TINY_NET, "--dataset", "digits", "--limit", 100, "--epochs", 1, "--out", run
        ).code
        == 0
    )
    summary = json.loads((run / "summary.json").read_text())
    summary["report"] |= {"selections": {"bn": [3, 8]}, "constant_layers": ["conv2"], "notes": ["batch size stays 1"]}
    (run / "summary.json").write_text(json.dumps(summary))
    expected = [
        "bn reads 3 of the 8 channels there are",
        "conv2 returns the same for every input",
        "batch size stays 1",
    ]
    changes = json.loads(compress_command("inspect", run, "--json").out)["changes"]
    assert [change.startswith(start) for change, start in zip(changes, expected, strict=True)] == [True] * 3
    assert expected[0] in compress_command("inspect", run).out


def test_a_model_shows_what_could_leave_it_and_what_not(compress_command: Callable):
    outcome = compress_command("inspect", "lenet5", "--image-size", "28", "--channels", "1")
    assert outcome.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line.strip()}
    assert rows["conv1"] == ["20", "20"]
    assert rows["fc1"] == ["500", "500"]
    assert rows["fc2"][:2] == ["10", "0"]
    assert "output" in " ".join(rows["fc2"][2:])
    options = ("--image-size", "28", "--channels", "1", "--json")
    layers = json.loads(compress_command("inspect", "lenet5", *options).out)["layers"]
    assert layers[0] == {"layer": "conv1", "before": 20, "removable": 20, "kept": {}}
    assert layers[-1] == {"layer": "fc2", "before": 10, "removable": 0, "kept": {"output of the network": 10}}


def test_figures_are_whole_in_files_and_narrow_terminals(capsys: pytest.CaptureFixture[str]):
    accuracy = dict.fromkeys(("dense", "masked", "compact"), 0.98765)
    sizes = {"dense": 25_557_032, "masked": 102_490_000, "compact": 1_813_562_832}
    summary = {
        "model": "torchvision:resnet50", "dataset": "/data/photos", "max_abs_error": 0.0,
        "accuracy": {"test": accuracy, "validation": accuracy},
        "parameters": sizes, "macs": sizes, "bytes": sizes,
    }  # fmt: skip
    console().print(summary_table(summary))
    for line in capsys.readouterr().out.splitlines():
        assert not line.startswith("compact ") or line.count("1,813,562,832") == 3
    narrow = Console(width=60, force_terminal=True)
    narrow.print(summary_table(summary))
    assert "…" not in capsys.readouterr().out


def test_bad_targets_are_refused(compress_command: Callable, tmp_path: Path):
    for target, word in [
        ("lenet6", "did you mean lenet5?"),
        ("runs/nope", "there is no run directory runs/nope, and no model is called 'runs/nope'; known: "),
        (tmp_path, "is no run directory"),
    ]:
        outcome = compress_command("inspect", target)
        assert outcome.code == 2
        assert word in outcome.err
