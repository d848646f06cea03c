import json
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.cli.prune import OPTIONS
from compress.train.recipe import resolve
from compress.train.session import train


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet-5 on 300 small digits, two epochs without penalty."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    flags = {
        "model.name": "lenet5",
        "data.name": "digits",
        "data.limit": 300,
        "data.image_size": 16,
        "penalty.name": "none",
        "optimizer.lr": 0.05,
        "schedule.epochs": 2,
        "run.device": "cpu",
        "run.threads": 1,
        "run.curves": False,
        "run.out": out,
    }
    train(resolve(flags=flags))
    return out


@pytest.mark.parametrize(
    ("options", "key", "share"),
    [
        (("--target-macs", "50%"), "macs", 0.5),
        (("--target-params", "20k", "--per-layer"), "parameters", None),
        (("--target-macs", "0.4", "--criterion", "taylor", "--batches", 3, "--normalise", "size"), "macs", 0.4),
    ],
)
def test_a_target_is_met_and_told(
    compress_command: Callable, dense: Path, tmp_path: Path, options: tuple, key: str, share: float | None
):
    out = tmp_path / "half"
    outcome = compress_command("prune", dense, "--out", out, *options)
    assert (outcome.code, outcome.err) == (0, "")
    summary = json.loads((out / "summary.json").read_text())
    wanted = 20_000 if share is None else share * summary[key]["dense"]
    assert abs(summary[key]["compact"] - wanted) <= 0.01 * summary[key]["dense"]
    told = summary["origin"]["prune"]
    for act in ("before", "zeroed"):
        [row] = [line for line in outcome.out.splitlines() if line.split()[:2] == ["accuracy", act]]
        assert row.split()[-1] == f"{told['validation_accuracy'][act]:.2%}"
    [row] = [line for line in outcome.out.splitlines() if line.split()[:1] == ["compact"]]
    assert f"{summary['accuracy']['test']['compact']:.2%}" in row
    assert f"{summary[key]['compact']:,} of {summary[key]['dense']:,}" in outcome.out
    assert f"compress finetune {out}" in outcome.out


def test_thresholds_and_ratios(compress_command: Callable, dense: Path, tmp_path: Path):
    for name, options in {
        "ratio": ("--keep-ratio", "70%", "--per-layer", "--min-channels", 16),
        "threshold": ("--threshold", 0.9),
    }.items():
        assert compress_command("prune", dense, "--out", tmp_path / name, *options).code == 0
    ratio = json.loads((tmp_path / "ratio" / "summary.json").read_text())["origin"]["prune"]["report"]
    assert ratio["layers"]["conv1"] == [20, 16]  # 14, but for the floor
    assert ratio["layers"]["conv2"] == [50, 35]
    threshold = json.loads((tmp_path / "threshold" / "summary.json").read_text())["origin"]["prune"]["report"]
    assert threshold["highest_zeroed"] < 0.9 <= threshold["lowest_kept"]


def test_widths_are_rounded(compress_command: Callable, dense: Path, tmp_path: Path):
    """And stay so for whoever goes on with the run."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    outcome = compress_command("prune", dense, "--out", once, "--target-params", "40%", "--round-to", 4)
    assert (outcome.code, outcome.err) == (0, "")
    assert compress_command("prune", once, "--out", twice, "--target-params", "50%").code == 0
    for out in (once, twice):
        prune = json.loads((out / "summary.json").read_text())["origin"]["prune"]
        assert prune["round_to"] == 4
        for before, after in prune["report"]["layers"].values():
            assert after % 4 == 0 or after == before
    assert (
        compress_command("prune", once, "--out", tmp_path / "finer", "--keep-ratio", "90%", "--round-to", 1).code == 0
    )
    finer = json.loads((tmp_path / "finer" / "summary.json").read_text())["origin"]["prune"]
    assert finer["round_to"] == 1
    assert any(after % 4 for _, after in finer["report"]["layers"].values())


def test_the_other_commands_take_a_pruned_run(compress_command: Callable, dense: Path, tmp_path: Path):
    out = tmp_path / "half"
    assert compress_command("prune", dense, "--out", out, "--target-params", "0.5").code == 0
    report = json.loads((out / "summary.json").read_text())["origin"]["prune"]["report"]
    inspected = compress_command("inspect", out)
    assert inspected.code == 0
    rows = {line.split()[0]: line.split()[1:3] for line in inspected.out.splitlines() if line.strip()}
    assert rows["fc1"] == [str(number) for number in report["layers"]["fc1"]]
    onnx = tmp_path / "half.onnx"
    assert compress_command("export", out, "--onnx", onnx).code == 0
    assert compress_command("export", out, "--onnx", tmp_path / "half-dense.onnx", "--dense").code == 0
    assert onnx.stat().st_size < 0.6 * (tmp_path / "half-dense.onnx").stat().st_size


def bad(*words: object, fault: str) -> object:
    return pytest.param(words, fault, id=" ".join(map(str, words)) or "nothing")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        bad(fault=f"give exactly one of {', '.join(OPTIONS.values())}; got none"),
        bad("--threshold", 1, "--target-macs", "50%", fault="got --threshold and --target-macs"),
        bad("--target-macs", "half", fault="--target-macs half: expected a share (0.5 or 50%) or a number"),
        bad("--target-macs", "100%", fault="a share must be below 100%"),
        bad("--target-macs", 1, fault="that is the network as it is"),
        bad("--target-params", "5G", fault="parameters as it is; ask for fewer"),
        bad("--target-macs", "50", fault="; a share is written 50%"),
        bad(
            "--target-macs",
            "0.01%",
            fault="cannot be reached within 10% of itself: every layer keeps",
        ),
        bad("--target-macs", "30%", "--min-channels", 40, fault="at least 40 channels (min_channels)"),
        bad("--target-macs", "50%", "--round-to", 0, fault="round_to=0: expected a whole number of channels"),
        bad("--keep-ratio", "-1", fault="--keep-ratio -1: expected a share"),
        bad("--keep-ratio", "2", fault="must be below 1"),
        bad("--threshold", "-1", fault="must be a finite number above 0"),
        bad("--threshold", "0.0001", fault="no group is below it and may leave; scores run from"),
        bad("--threshold", "0.5", "--per-layer", fault="per_layer would change nothing"),
        bad("--keep-ratio", "0.5", "--criterion", "random", fault="known: magnitude, bn-scale, taylor"),
        bad("--keep-ratio", "0.5", "--criterion", "bn-scale", fault="no channel of this LeNet5 passes a BatchNorm"),
        bad("--keep-ratio", "0.5", "--normalise", "max", fault="known: none, size, layer"),
        bad("--keep-ratio", "0.5", "--min-channels", 0, fault="must keep at least one channel"),
        bad("--keep-ratio", "0.5", "--recalibrate", 2, fault="no BatchNorm with running statistics"),
        bad("--keep-ratio", "0.5", "--batches", 0, fault="--batches"),
        bad("--keep-ratio", "0.5", "--device", "tpu", fault="run.device: got 'tpu'"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(
    compress_command: Callable, dense: Path, tmp_path: Path, options: tuple, fault: str
):
    outcome = compress_command("prune", dense, "--out", tmp_path / "out", *options)
    assert outcome.code == 2
    assert fault in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_what_pruning_lacks_is_not_suggested(compress_command: Callable, dense: Path, tmp_path: Path):
    """A pruned run appears when it is complete: there is never something to resume."""
    out = tmp_path / "half"
    options = ("--out", out, "--target-params", "0.5")
    assert compress_command("prune", dense, *options).code == 0
    again = compress_command("prune", dense, *options)
    assert (again.code, again.err) == (
        2, f"compress: --out {out}: is not empty. Give another name or remove it\n",
    )  # fmt: skip
    (out / "model.safetensors").unlink()
    for command in (("inspect", out), ("train", "--out", out, "--resume")):
        outcome = compress_command(*command)
        assert outcome.code == 2
        assert "compress prune makes it anew, with another --out" in outcome.err


def test_runs_that_are_none_are_refused(compress_command: Callable, dense: Path, tmp_path: Path):
    for source, out, fault in [
        (tmp_path, tmp_path / "out", "is no run directory"),
        (tmp_path / "none", tmp_path / "out", "is no run directory"),
        (dense, dense, "is not empty"),
    ]:
        outcome = compress_command("prune", source, "--out", out, "--keep-ratio", "0.5")
        assert outcome.code == 2
        assert fault in outcome.err
    assert list(tmp_path.iterdir()) == []
    assert compress_command("prune", dense, "--keep-ratio", "0.5").code == 2  # no --out
