import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.data import Data, Split
from compress.errors import CheckpointError, ConfigError, ModelError
from compress.train import session
from compress.train.config import Config
from compress.train.loop import Trainer
from compress.train.rundir import load_data, open_run
from compress.train.session import train

Tiny = Callable[..., Config]


def test_a_run_directory_is_complete_and_opens(tiny: Tiny):
    config = tiny()
    summary = train(config)
    files = {path.name for path in config.out.iterdir()}
    assert files == {
        "config.toml", "metrics.jsonl", "metrics.csv", "checkpoint.pt", "masked.safetensors", "model.safetensors",
        "plan.json", "summary.json",
    }  # fmt: skip
    assert json.loads((config.out / "summary.json").read_text()) == summary

    run = open_run(config.out)
    assert (run.config, run.hash) == (config, summary["hash"])
    assert run.class_names == tuple("0123456789")
    images = run.validation_batch(8)
    assert images.shape == (8, 1, 8, 8)
    assert images.dtype == torch.float32
    compact, masked = run.model(), run.dense_model()
    assert not compact.training
    with torch.no_grad():
        assert torch.allclose(compact(images), masked(images), rtol=0, atol=1e-5)


def test_the_summarys_figures_are_those_of_the_networks(tiny: Tiny):
    config = tiny()
    summary = train(config)
    run = open_run(config.out)
    data = load_data(config.data, config.run.seed)
    images = run.validation_batch(len(data.validation))
    for name, model in [("masked", run.dense_model()), ("compact", run.model())]:
        with torch.no_grad():
            right = (model(images).argmax(1) == data.validation.labels).double().mean()
        assert summary["accuracy"]["validation"][name] == pytest.approx(float(right))
        assert 0 <= summary["accuracy"]["test"][name] <= 1
    assert summary["accuracy"]["test"]["dense"] is None
    # 8 of 8 and 7 of 12 filters live: 72 + 16, 7 * 8 * 9 + 7, 7 * 10 + 10; before, 12 in place of 7.
    alive = json.loads((config.out / "metrics.jsonl").read_text().splitlines()[-1])["live_groups"]
    assert summary["dead_share"] == pytest.approx(1 - sum(alive.values()) / 20)
    a, b = alive["features.0"], alive["features.4"]
    assert (a, b) != (8, 12)
    assert summary["parameters"] == {
        "dense": 8 * 9 + 16 + 12 * 8 * 9 + 12 + 12 * 10 + 10,
        "compact": a * 9 + 2 * a + b * a * 9 + b + b * 10 + 10,
    }
    assert summary["macs"] == {
        "dense": 8 * 9 * 64 + 12 * 8 * 9 * 4 + 12 * 10,
        "compact": a * 9 * 64 + b * a * 9 * 4 + b * 10,
    }
    assert summary["bytes"]["compact"] == (config.out / "model.safetensors").stat().st_size
    assert 0 <= summary["max_abs_error"] <= 1e-5


def test_the_test_split_is_read_once_when_training_has_ended(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    config = tiny("run.dense_baseline=true")
    epochs_logged: list[int] = []

    def watched(*arguments: object) -> Data:
        data = load_data(*arguments)

        def load_test() -> Split | None:
            epochs_logged.append(len((config.out / "metrics.jsonl").read_text().splitlines()))
            return data.load_test()

        return dataclasses.replace(data, load_test=load_test)

    monkeypatch.setattr(session, "load_data", watched)
    train(config)
    assert epochs_logged == [3]


def test_the_dense_baseline_is_the_same_recipe_without_penalty(tiny: Tiny, tmp_path: Path):
    with_baseline = train(tiny("run.dense_baseline=true"))
    dense = train(tiny("penalty.name=none", out=tmp_path / "dense"))
    assert with_baseline["accuracy"]["test"]["dense"] == dense["accuracy"]["test"]["masked"]
    ours = load_file(tmp_path / "run" / "dense" / "model.safetensors")
    theirs = load_file(tmp_path / "dense" / "masked.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert dense["parameters"]["dense"] == dense["parameters"]["compact"]
    assert dense["dead_share"] is None


@pytest.mark.parametrize("step", [4, 33], ids=["in the dense baseline", "in the sparse training"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tiny: Tiny, tmp_path: Path, stopping: Callable[[int], AbstractContextManager[None]], step: int
):
    whole = train(tiny("run.dense_baseline=true", out=tmp_path / "whole"))
    config = tiny("run.dense_baseline=true", out=tmp_path / "parts")
    with stopping(step):
        train(config)
    assert not (tmp_path / "parts" / "summary.json").exists()
    with pytest.raises(CheckpointError, match=r"the run is not complete .* --resume"):
        open_run(tmp_path / "parts")
    resumed = train(config, resume=True)
    assert resumed["hash"] == whole["hash"]
    assert resumed["accuracy"] == whole["accuracy"]


def test_a_complete_run_is_not_trained_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    config = tiny()
    summary = train(config)
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("trained again"))
    assert train(config, resume=True) == summary


def test_a_directory_that_is_not_empty_is_refused(tiny: Tiny):
    config = tiny()
    config.out.mkdir()
    (config.out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty\. Give another name"):
        train(config)
    assert [path.name for path in config.out.iterdir()] == ["notes.txt"]


def test_resume_needs_a_run_and_the_same_recipe(tiny: Tiny):
    with pytest.raises(CheckpointError, match=r"no run to resume \(config\.toml is missing\)"):
        train(tiny(), resume=True)
    train(tiny())
    with pytest.raises(ConfigError, match=r"(?s)optimizer\.lr: 0\.05 -> 0\.1\n  schedule\.epochs: 3 -> 4\n"):
        train(tiny("optimizer.lr=0.1", "schedule.epochs=4"), resume=True)


def test_a_truncated_checkpoint_is_refused_on_resume(tiny: Tiny):
    config = tiny()
    train(config)
    (config.out / "summary.json").unlink()
    checkpoint = config.out / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="truncated"):
        train(config, resume=True)


def test_what_cannot_be_built_leaves_nothing_behind(tiny: Tiny, tmp_path: Path):
    model = tmp_path / "net.py"
    model.write_text("def make():\n    raise ValueError('no weights today')\n")
    config = tiny(f"model.name={model}:make")
    with pytest.raises(ModelError, match="no weights today"):
        train(config)
    assert not config.out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_refused(tiny: Tiny):
    with pytest.raises(ConfigError, match=r"run\.device: cuda, but torch finds no GPU"):
        train(tiny("run.device=cuda"))


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json", "masked.safetensors"])
def test_a_changed_file_is_found_when_the_run_is_opened(tiny: Tiny, name: str):
    config = tiny()
    train(config)
    path = config.out / name
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not the file that the run wrote"):
        open_run(config.out)


def test_other_folders_are_no_runs(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is no run directory"):
        open_run(tmp_path)


def test_resume_refuses_another_model_file(tiny: Tiny, tmp_path: Path):
    net = tmp_path / "net.py"
    net.write_text((Path(__file__).parent / "tiny_net.py").read_text())
    config = tiny(f"model.name={net}:make")
    train(config)
    (config.out / "summary.json").unlink()
    net.write_text(net.read_text().replace("Dropout(0.2)", "Dropout(0.9)"))
    with pytest.raises(CheckpointError, match="was made with another model file; bring the old one back"):
        train(config, resume=True)


def test_resume_takes_the_threads_of_the_start(tiny: Tiny):
    config = tiny()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(config)
        (config.out / "summary.json").unlink()
        torch.set_num_threads(2)
        assert train(config, resume=True)["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_a_network_that_died_is_refused_with_what_to_change(tiny: Tiny):
    config = tiny("penalty.name=l0", "penalty.strength=1e9")
    with pytest.raises(ModelError, match=r"same output for every image.*smaller penalty\.strength \(now 1e\+09\)"):
        train(config)
    assert not (config.out / "summary.json").exists()
