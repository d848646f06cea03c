"""From a run directory to a pruned one, on runs that were really trained, briefly."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from compress.errors import CheckpointError, ConfigError, VerificationError
from compress.pruning import Policy, Target
from compress.pruning.run import Task, prune_run
from compress.surgery import Plan, weights_hash
from compress.train import session
from compress.train.evaluate import evaluate
from compress.train.inputs import Inputs
from compress.train.interrupt import Interrupted
from compress.train.recipe import resolve
from compress.train.rundir import Origin, load_data, open_run
from compress.train.session import train

HALF = Task(Target("macs", 0.5))


def trained(out: Path, **flags: object) -> Path:
    """LeNet-5 on small digits."""
    given = {
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
    train(resolve(flags=given | flags))
    return out


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "dense")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    strong = {"penalty.name": "l0", "penalty.strength": 20.0, "optimizer.lr": 0.01}
    return trained(tmp_path_factory.mktemp("runs") / "sparse", **strong)


def accuracy(model, config, split="validation"):
    data = load_data(config.data, config.run.seed)
    inputs = Inputs(data, config.data.augment, seed=0, device=torch.device("cpu"))
    return evaluate(model, getattr(data, split), inputs).accuracy


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_a_pruned_run_is_a_run(dense, tmp_path, criterion):
    lines = []
    out = tmp_path / "half"
    summary = prune_run(dense, out, dataclasses.replace(HALF, policy=Policy(criterion)), lines.append)
    assert {path.name for path in out.iterdir()} == {
        "config.toml", "origin.json", "masked.safetensors", "model.safetensors", "plan.json", "summary.json",
    }  # fmt: skip
    source, run = open_run(dense), open_run(out)
    assert run.summary == summary
    assert run.config == source.config.model_copy(update={"run": source.config.run.model_copy(update={"out": out})})

    assert abs(summary["macs"]["compact"] / source.summary["macs"]["compact"] - 0.5) <= 0.01
    model, masked = run.model(), run.dense_model()
    assert summary["parameters"]["compact"] == sum(p.numel() for p in model.parameters())
    images = run.validation_batch(16)
    with torch.no_grad():
        assert torch.allclose(model(images), masked(images), rtol=0, atol=1e-5)
    plan = Plan.load(out / "plan.json")
    assert plan.hash_before == weights_hash(masked.state_dict())
    assert plan.hash_after == weights_hash(model.state_dict())

    told = summary["origin"]["prune"]["validation_accuracy"]
    assert summary["accuracy"]["validation"]["dense"] == told["before"] == accuracy(source.model(), source.config)
    assert summary["accuracy"]["validation"]["compact"] == told["zeroed"] == accuracy(model, run.config)
    assert summary["accuracy"]["test"]["dense"] == source.summary["accuracy"]["test"]["masked"]
    assert (summary["origin"]["act"], summary["origin"]["hash"]) == ("prune", source.hash)
    assert len(lines) == 2
    assert f"{told['zeroed']:.2%}" in lines[1]


def test_a_sparse_run_is_pruned_from_what_it_has_left(sparse, tmp_path):
    source = open_run(sparse)
    left = source.summary["parameters"]
    assert left["compact"] < 0.95 * left["dense"]
    prune_run(sparse, tmp_path / "half", Task(Target("params", 0.5)))
    run = open_run(tmp_path / "half")
    assert abs(run.summary["parameters"]["compact"] / left["compact"] - 0.5) <= 0.01
    assert run.summary["parameters"]["dense"] == left["dense"]
    assert run.summary["origin"]["prune"]["report"]["params_before"] == left["compact"]
    assert run.summary["accuracy"]["test"]["dense"] is None  # no network without penalty was trained
    before, after = source.plan().parameters, run.plan().parameters
    for name, kept in before.items():
        for dim, indices in kept.indices.items():
            assert set(after[name].indices[dim]) <= set(indices)  # nothing that had left is back
    assert not run.model().training


def test_pruned_twice(dense, tmp_path):
    prune_run(dense, tmp_path / "once", Task(Target("params", 0.6)))
    twice = prune_run(tmp_path / "once", tmp_path / "twice", Task(Target("params", 0.5)))
    share = twice["parameters"]["compact"] / twice["parameters"]["dense"]
    assert share == pytest.approx(0.3, abs=0.011)
    assert twice["origin"]["run"] == str(tmp_path / "once")
    assert twice["accuracy"]["test"]["dense"] == open_run(dense).summary["accuracy"]["test"]["masked"]


def test_statistics_are_re_estimated_before_the_network_is_cut(tmp_path):
    tiny = f"{Path(__file__).parents[1] / 'train' / 'tiny_net.py'}:make"
    source = trained(tmp_path / "tiny", **{"model.name": tiny, "data.image_size": None})
    task = Task(Target("keep-ratio", 0.6), recalibrate=3)
    summary = prune_run(source, tmp_path / "less", task)
    told = summary["origin"]["prune"]
    assert list(told["validation_accuracy"]) == ["before", "zeroed", "recalibrated"]
    assert told["validation_accuracy"]["recalibrated"] == summary["accuracy"]["validation"]["compact"]
    assert told["recalibrate"] == 3
    mean = open_run(tmp_path / "less").dense_model().features[1].running_mean
    assert not torch.equal(mean, open_run(source).dense_model().features[1].running_mean)
    lines = []
    prune_run(source, tmp_path / "stale", Task(Target("keep-ratio", 0.6)), lines.append)
    assert lines[-1].startswith("note: BatchNorm statistics are those from before pruning")
    again = prune_run(source, tmp_path / "again", task)
    assert again["hash"] == summary["hash"]


def test_only_training_images_decide_and_the_test_split_is_read_once(dense, tmp_path, monkeypatch):
    read = []

    def spied(*arguments):
        data = load_data(*arguments)
        return dataclasses.replace(data, load_test=lambda: read.append("test") or data.load_test())

    monkeypatch.setattr("compress.pruning.run.load_data", spied)

    def nothing_left(_):
        assert read == []  # whatever is chosen has been chosen by now

    prune_run(dense, tmp_path / "half", dataclasses.replace(HALF, policy=Policy("taylor")), nothing_left)
    assert read == ["test"]


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (Task(Target("macs", 0.0001)), ConfigError, "cannot be reached within 10% of itself"),
        (Task(Target("macs", 0.5), Policy("bn-scale")), ConfigError, "no channel of this LeNet5 passes a BatchNorm"),
        (Task(Target("macs", 0.5), recalibrate=2), ConfigError, "no BatchNorm with running statistics"),
    ],
)
def test_what_cannot_be_done_leaves_nothing_behind(dense, tmp_path, task, error, message):
    with pytest.raises(error, match=message):
        prune_run(dense, tmp_path / "half", task)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_verification_leaves_nothing_behind(dense, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.train.finish.AGREEMENT_TOLERANCE", -1.0)
    with pytest.raises(VerificationError, match="masked and compact network differ"):
        prune_run(dense, tmp_path / "half", HALF)
    assert list(tmp_path.iterdir()) == []


def test_other_directories_are_refused(dense, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        prune_run(dense, tmp_path, HALF)
    with pytest.raises(CheckpointError, match="is no run directory"):
        prune_run(tmp_path, tmp_path / "out", HALF)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_is_not_complete_is_refused(dense, tmp_path):
    (tmp_path / "config.toml").write_text((dense / "config.toml").read_text())
    with pytest.raises(CheckpointError, match=r"not complete .* compress train --out .* --resume"):
        prune_run(tmp_path, tmp_path / "out", HALF)


def tuned(source, out, *settings, resume=False):
    run = open_run(source)
    flags = {"penalty.name": "none", "run.curves": False, "run.out": out}
    return train(resolve(source / "config.toml", flags, settings), resume=resume, origin=Origin("finetune", run))


def test_a_pruned_run_can_be_trained_on(dense, tmp_path):
    prune_run(dense, tmp_path / "half", HALF)
    before = open_run(tmp_path / "half")
    summary = tuned(tmp_path / "half", tmp_path / "tuned")
    run = open_run(tmp_path / "tuned")
    assert (run.plan().parameters, run.plan().new_biases) == (before.plan().parameters, before.plan().new_biases)
    assert run.plan().hash_after == weights_hash(run.model().state_dict())
    assert run.plan().hash_before == weights_hash(run.dense_model().state_dict())
    assert summary["macs"] == before.summary["macs"]
    assert not torch.equal(run.model().fc2.weight, before.model().fc2.weight)
    images = run.validation_batch(16)
    with torch.no_grad():
        assert torch.allclose(run.model()(images), run.dense_model()(images), rtol=0, atol=1e-5)
    assert summary["accuracy"]["test"]["dense"] == open_run(dense).summary["accuracy"]["test"]["masked"]
    assert json.loads((tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()[0])["loss"] > 0


def test_a_run_trained_on_can_be_pruned_and_trained_on_again(sparse, tmp_path):
    tuned(sparse, tmp_path / "tuned")
    prune_run(tmp_path / "tuned", tmp_path / "half", HALF)
    summary = tuned(tmp_path / "half", tmp_path / "again", "penalty.name=l1", "penalty.strength=0.001")
    chain = [open_run(path) for path in (sparse, tmp_path / "tuned", tmp_path / "half", tmp_path / "again")]
    macs = [run.summary["macs"]["compact"] for run in chain]
    assert macs[0] == macs[1] > macs[2] >= macs[3]
    assert summary["macs"]["dense"] == chain[0].summary["macs"]["dense"]


def test_resume_knows_its_origin(dense, sparse, tmp_path, monkeypatch):
    out = tmp_path / "tuned"
    whole = tuned(dense, out)
    (out / "summary.json").unlink()
    assert tuned(dense, out, resume=True)["hash"] == whole["hash"]
    (out / "summary.json").unlink()
    config = resolve(out / "config.toml")
    with pytest.raises(ConfigError, match=rf"goes on from {dense}, not from none; continue it with: compress finetune"):
        train(config, resume=True)
    with pytest.raises(ConfigError, match=rf"goes on from {dense}, not from {sparse}"):
        train(config, resume=True, origin=Origin("finetune", open_run(sparse)))
    with pytest.raises(CheckpointError, match=rf"not complete .* compress finetune {dense} --out {out} --resume"):
        open_run(out)
    fresh = tmp_path / "fresh"
    monkeypatch.setattr(session.Trainer, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted):
        trained(fresh)
    with pytest.raises(ConfigError, match="goes on from no other run"):
        train(resolve(fresh / "config.toml"), resume=True, origin=Origin("finetune", open_run(dense)))
