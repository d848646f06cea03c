"""Learning from another network: the loss by its definition, and where teachers come from."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compress.errors import CheckpointError, ConfigError
from compress.train.config import Config, DistillSection
from compress.train.distill import Distillation, Teacher, find_teacher, own_teacher
from compress.train.loss import Loss
from compress.train.rundir import Origin, load_data, open_run
from compress.train.session import train

Tiny = Callable[..., Config]
CPU = torch.device("cpu")


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("temperature", "weight", "smoothing"), [(4.0, 0.5, 0.0), (1.0, 0.9, 0.1), (2.0, 1.0, 0.3)])
def test_the_loss_is_that_of_the_paper(temperature: float, weight: float, smoothing: float):
    teacher, student = linear(1), linear(2)
    images, labels = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    section = DistillSection(teacher="dense", temperature=temperature, weight=weight)
    logits = student(images)
    loss = Loss(smoothing, Distillation(own_teacher(teacher), section))(images, logits, labels)

    expected = 0.0
    for theirs, ours, label in zip(teacher(images).tolist(), logits.tolist(), labels.tolist(), strict=True):
        target = [(1 - smoothing) * (k == label) + smoothing / 3 for k in range(3)]
        hard = -sum(y * math.log(q) for y, q in zip(target, softmax(ours, 1.0), strict=True))
        pairs = zip(softmax(theirs, temperature), softmax(ours, temperature), strict=True)
        soft = sum(p * math.log(p / q) for p, q in pairs)
        expected += ((1 - weight) * hard + weight * temperature**2 * soft) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    assert student[1].weight.grad.abs().max() > 0
    assert teacher[1].weight.grad is None


def test_images_are_brought_to_the_teachers_mean_and_deviation():
    raw = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    theirs_mean, theirs_std = mean + 0.05, std * 1.5
    teacher = Teacher(nn.Identity(), std / theirs_std, (mean - theirs_mean) / theirs_std)
    torch.testing.assert_close(teacher.logits((raw - mean) / std), (raw - theirs_mean) / theirs_std)


def test_a_run_learns_from_its_dense_baseline(tiny: Tiny, tmp_path: Path):
    alone = train(tiny("run.dense_baseline=true", out=tmp_path / "alone"))
    taught = train(tiny("run.dense_baseline=true", "distill.teacher=dense", out=tmp_path / "taught"))
    assert taught["accuracy"]["test"]["dense"] == alone["accuracy"]["test"]["dense"]
    assert taught["hash"] != alone["hash"]


@pytest.mark.parametrize("step", [4, 33], ids=["in the dense baseline", "in the sparse training"])
def test_a_taught_run_that_was_stopped_ends_as_one_that_was_not(
    tiny: Tiny, tmp_path: Path, stopping: Callable[[int], AbstractContextManager[None]], step: int
):
    settings = ("run.dense_baseline=true", "distill.teacher=dense", "average.decay=0.9")
    whole = train(tiny(*settings, out=tmp_path / "whole"))
    config = tiny(*settings, out=tmp_path / "parts")
    with stopping(step):
        train(config)
    assert train(config, resume=True)["hash"] == whole["hash"]


def test_a_finetuned_run_learns_from_the_dense_network_that_it_comes_from(tiny: Tiny, tmp_path: Path):
    first = tiny("run.dense_baseline=true", out=tmp_path / "first")
    train(first)
    second = tiny("penalty.name=none", out=tmp_path / "second")
    train(second, origin=Origin("finetune", open_run(first.out)))
    data, section = load_data(first.data, 0), DistillSection(teacher="dense")
    teacher = find_teacher(section, data, open_run(second.out), CPU)
    dense = load_file(first.out / "dense" / "model.safetensors")
    assert all(torch.equal(tensor, dense[name]) for name, tensor in teacher.network.state_dict().items())
    third = tiny("penalty.name=none", "distill.teacher=dense", out=tmp_path / "third")
    summary = train(third, origin=Origin("finetune", open_run(second.out)))
    assert summary["accuracy"]["validation"]["compact"] > 0


def test_a_run_without_penalty_is_dense_itself(tiny: Tiny, tmp_path: Path):
    train(tiny("penalty.name=none", out=tmp_path / "dense"))
    run = open_run(tmp_path / "dense")
    teacher = find_teacher(DistillSection(teacher="dense"), load_data(run.config.data, 0), run, CPU)
    kept = run.dense_model().state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in teacher.network.state_dict().items())


def test_another_run_is_a_teacher_and_its_change_is_noticed(
    tiny: Tiny, tmp_path: Path, stopping: Callable[[int], AbstractContextManager[None]]
):
    train(tiny(out=tmp_path / "teacher"))
    config = tiny("penalty.name=none", f"distill.teacher={tmp_path / 'teacher'}", out=tmp_path / "run")
    with stopping(9):
        train(config)
    (tmp_path / "teacher").rename(tmp_path / "former")
    train(tiny("run.seed=1", out=tmp_path / "teacher"))
    with pytest.raises(CheckpointError, match="was made with another teacher"):
        train(config, resume=True)


def test_teachers_that_are_none_are_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path):
    config = tiny("distill.teacher=dense", out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r'"dense", but this run trains none; train one with --dense-'):
        train(config)
    with pytest.raises(CheckpointError, match="is no run directory"):
        train(tiny(f"distill.teacher={tmp_path / 'nowhere'}", out=tmp_path / "run"))
    assert not config.out.exists()


def test_a_teacher_of_another_task_is_refused(tiny: Tiny, tmp_path: Path):
    train(tiny(out=tmp_path / "teacher"))
    data = load_data(tiny().data, 0)
    section = DistillSection(teacher=str(tmp_path / "teacher"))
    with pytest.raises(ConfigError, match=r"its classes are 0, 1, 2, 3, 4, \.\.\. \(10\), expected cat, dog"):
        find_teacher(section, dataclasses.replace(data, classes=("cat", "dog")), None, CPU)
    with pytest.raises(ConfigError, match="its images are 1, 8, 8, expected 1, 16, 16"):
        find_teacher(section, dataclasses.replace(data, image_shape=(1, 16, 16)), None, CPU)


def test_a_section_needs_a_teacher(tiny: Tiny):
    with pytest.raises(ConfigError, match=r"distill\.teacher: missing"):
        tiny("distill.weight=0.5")
    with pytest.raises(ConfigError, match=r"distill\.weight: got 0;"):
        tiny("distill.teacher=dense", "distill.weight=0")
