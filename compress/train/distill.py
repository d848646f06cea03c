"""Knowledge distillation: a network learns from another one's answers, not from labels alone.

Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network" (arXiv 1503.02531). With a
temperature ``T`` the teacher answers ``p = softmax(z / T)``, and the network ``q`` likewise; what is added to the loss
is ``T^2 KL(p || q)``, whose gradient keeps its size whatever the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.data import Data
from compress.errors import ConfigError
from compress.train.config import DENSE_TEACHER, DistillSection
from compress.train.rundir import Run, open_run


@dataclass(frozen=True)
class Teacher:
    """A network to learn from.

    Attributes:
        network: In eval mode, on the device of the images; it is never changed.
        scale, shift: Of the channels ``[C, 1, 1]``, that bring our images to its own mean and standard deviation.
    """

    network: nn.Module
    scale: Tensor
    shift: Tensor

    def logits(self, images: Tensor) -> Tensor:
        """Its answers ``[N, classes]`` to images that are normalised as ours are."""
        with torch.no_grad():
            answers: Tensor = self.network(images * self.scale + self.shift)
        return answers


class Distillation:
    """``T^2 KL(p || q)``.

    Attributes:
        weight: Of this term; that of the labels' is one minus it.
        teacher: Whose answers are followed.

    Args:
        teacher: As above.
        section: ``[distill]``.
    """

    def __init__(self, teacher: Teacher, section: DistillSection) -> None:
        self.weight = section.weight
        self.teacher = teacher
        self._temperature = section.temperature

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """The mean over images ``[N, C, H, W]``, for the network's logits ``[N, classes]``: a scalar, in nats."""
        expected, own = (each / self._temperature for each in (self.teacher.logits(images), logits))
        divergence = F.kl_div(own.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True)
        return self._temperature**2 * divergence


def own_teacher(network: nn.Module) -> Teacher:
    """A network that takes images as ours does."""
    network.requires_grad_(False)
    return Teacher(network.eval(), torch.ones(()), torch.zeros(()))


def find_teacher(section: DistillSection, data: Data, origin: Run | None, device: torch.device) -> Teacher:
    """The teacher that a recipe names.

    Args:
        section: ``[distill]``.
        data: What our network is trained on.
        origin: The run that ours goes on from: ``dense`` is the dense network that it comes from.
        device: Where images will be.

    Raises:
        ConfigError: There is none, or it answers to other images or with other classes.
        CheckpointError: Its run is incomplete or damaged.
    """
    if section.teacher == DENSE_TEACHER:
        run, network = _dense(origin)
    else:
        run = open_run(Path(section.teacher))
        network = run.model()
    _check_same_task(run, data)
    ours, theirs = (torch.tensor((each.mean, each.std), dtype=torch.float64) for each in (data, run))
    scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
    scale, shift = (each.float().reshape(-1, 1, 1).to(device) for each in (scale, shift))
    return Teacher(network.requires_grad_(False).eval().to(device), scale, shift)


def _dense(origin: Run | None) -> tuple[Run, nn.Module]:
    """The dense network that a run, or the first of those that it goes on from, began with or was compared with."""
    run = origin
    while run is not None:
        network = run.dense_baseline()
        if network is not None:
            return run, network
        earlier = run.origin_path()
        run = None if earlier is None else open_run(earlier)
    where = "this run trains none" if origin is None else f"{origin.path} comes from none"
    raise ConfigError(
        f'distill.teacher: "{DENSE_TEACHER}", but {where}; train one with --dense-baseline, or name another run'
    )


def _check_same_task(run: Run, data: Data) -> None:
    for what, theirs, ours in (
        ("classes", run.class_names, tuple(data.classes)),
        ("images", run.image_shape, tuple(data.image_shape)),
    ):
        if theirs != ours:
            raise ConfigError(
                f"distill.teacher {run.path}: its {what} are {_short(theirs)}, expected {_short(ours)}; a teacher "
                "answers the same question: name a run on the same data set and image size"
            )


def _short(values: tuple[object, ...], most: int = 5) -> str:
    told = ", ".join(map(str, values[:most]))
    return told if len(values) <= most else f"{told}, ... ({len(values)})"
