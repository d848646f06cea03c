"""Images a second in training: this package's loop beside a plain one, on the same machine in the same minutes.

    python experiments/throughput.py speed --markdown docs/results/throughput.md    # an hour; or --images 6000
    python experiments/throughput.py accuracy --markdown docs/results/throughput-accuracy.md
    python experiments/throughput.py layouts --markdown docs/results/channels-last.md

The plain loop is what most people write: torchvision's data set, a ``DataLoader`` with ``ToTensor``, ``RandomCrop``,
``RandomHorizontalFlip`` (not for digits) and ``Normalize``, then zero_grad, forward, cross-entropy, backward, step, and
``loss.item()`` for the log. It runs with two worker processes and with none, and the faster of the two counts. Ours is
the loop of ``compress train`` without a penalty, with its defaults. Network, optimizer, batch size, augmentation and
number of images are the same.

``speed`` lets the loops take turns, an epoch each in a process of its own, so that a machine that becomes busier slows
both. An epoch's time is that of training alone, without validation. "Its steps alone" are the steps of our loop on a
batch that lies ready, without data, augmentation or log: the bound of any loop over these steps. ``accuracy`` trains
both from each seed for a few epochs and compares the accuracy on the test images; random numbers are not the same ones,
so that only the means can agree, and those to about the standard error of their difference. ResNet-20's learning rate
falls over these epochs, by half a cosine; LeNet-5's stays. ``layouts`` measures steps in turns with images
channels-first and channels-last, without data or augmentation: what ``run.channels_last = "auto"`` rests on.
"""

from __future__ import annotations

import argparse
import gzip
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from epochs import EpochByEpoch
from page import Page, about, environment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Subset

from compress.data.stratified import complement, stratified_choice
from compress.models import MODELS, build
from compress.torchvision_compat import torchvision
from compress.train.allocator import keep_freed_memory
from compress.train.config import Config
from compress.train.evaluate import EVALUATION_BATCH, inference
from compress.train.execution import Execution, gains_from_channels_last
from compress.train.recipe import resolve
from compress.train.session import seed_everything

CPU = torch.device("cpu")
MOMENTUM = 0.9
VALIDATION_SHARE = 0.1
OURS = "compress train"
STEPS = "its steps alone"
WORKERS = (2, 0)
"""Of the plain loop; the better one counts."""


@dataclass(frozen=True)
class Case:
    """What both loops train.

    Attributes:
        title: For people.
        model: A key of ``compress.models.MODELS``; ``image_size`` and ``channels`` are those of its images.
        data: Keys of the recipe that name the images, but for the folder.
        batch_size: Images in a step; ``lr`` its rate.
        pad: Of the random crop; ``flip``: whether images are mirrored too.
        epochs: Of ``accuracy``.
        target: How many times as fast ours is asked to be.
        lr_schedule: How the rate moves over these epochs.
    """

    title: str
    model: str
    data: str
    batch_size: int
    lr: float
    image_size: int
    channels: int
    pad: int
    flip: bool
    epochs: int
    target: float
    lr_schedule: str = "constant"


CASES = {
    "lenet5": Case("LeNet-5, MNIST", "lenet5", "mnist", 64, 0.01, 28, 1, 2, flip=False, epochs=3, target=3.0),
    "lenet5-128": Case(
        "LeNet-5, MNIST, batches of 128", "lenet5", "mnist", 128, 0.02, 28, 1, 2, flip=False, epochs=3, target=3.0
    ),
    "resnet20": Case(
        *("ResNet-20, CIFAR-10 (JPEG)", "resnet20", "folder", 128, 0.1, 32, 3, 4),
        flip=True,
        epochs=5,
        target=1.5,
        lr_schedule="cosine",
    ),
}


@dataclass(frozen=True)
class Folders:
    """Where images are.

    Attributes:
        mnist: Holds ``MNIST/raw``, packed or not.
        cifar: Holds ``train/<class>`` and ``test/<class>``.
        scratch: Where unpacked copies and run directories may be made.
    """

    mnist: Path
    cifar: Path
    scratch: Path

    def of(self, case: Case) -> Path:
        """The data folder of a recipe."""
        return self.mnist if case.data == "mnist" else self.cifar


@dataclass(frozen=True)
class Facts:
    """What a loop tells when it is ready.

    Attributes:
        images: Of an epoch; ``mean`` and ``std`` are those of their channels.
        start_seconds: What came before the first epoch: reading and decoding all images, building the network.
    """

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    start_seconds: float


class Ours(EpochByEpoch):
    """The loop of ``compress train``."""

    def __init__(self, case: Case, folders: Folders, *, epochs: int, limit: int | None, seed: int) -> None:
        super().__init__(recipe(case, folders, epochs=epochs, limit=limit, seed=seed), folders.scratch)
        data = self.data
        self.facts = Facts(len(data.train), data.mean, data.std, self.start_seconds)

    def seconds(self) -> float:
        """Train an epoch; how long it took."""
        return float(self.epoch()["seconds"])


class Plain:
    """A loop as most people write it.

    Args:
        epochs: Over which the learning rate moves.
        workers: Processes of its ``DataLoader``.
        like: Whose mean and deviation are taken over, and whose number of training images must be its own.
    """

    def __init__(
        self, case: Case, folders: Folders, *, epochs: int, workers: int, like: Facts, limit: int | None, seed: int
    ) -> None:
        begin = time.perf_counter()
        transforms: Any = torchvision.transforms
        fixed = [transforms.ToTensor(), transforms.Normalize(like.mean, like.std)]
        flips = [transforms.RandomHorizontalFlip()] if case.flip else []
        crop = transforms.RandomCrop(case.image_size, padding=case.pad)
        train = dataset(case, folders, transforms.Compose([crop, *flips, *fixed]), train=True)
        self._test = dataset(case, folders, transforms.Compose(fixed), train=False)
        indices = training_indices(torch.as_tensor(train.targets), limit=limit, seed=seed)
        assert len(indices) == like.images
        torch.manual_seed(seed)
        self._loader: DataLoader[Any] = DataLoader(
            Subset(train, indices.tolist()),
            batch_size=case.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        self.model = network(case, seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=case.lr, momentum=MOMENTUM)
        self._schedule: CosineAnnealingLR | None = None
        if case.lr_schedule == "cosine":
            self._schedule = CosineAnnealingLR(self.optimizer, epochs * len(self._loader))
        self.facts = replace(like, start_seconds=time.perf_counter() - begin)

    def seconds(self) -> float:
        """Train an epoch; how long it took."""
        begin = time.perf_counter()
        self.model.train()
        total = 0.0
        for images, labels in self._loader:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            if self._schedule is not None:
                self._schedule.step()
            total += loss.item() * len(labels)
        return time.perf_counter() - begin

    def accuracy(self) -> float:
        """On the test images."""
        correct = 0
        with inference(self.model):
            for images, labels in DataLoader(self._test, batch_size=EVALUATION_BATCH):
                correct += int((self.model(images).argmax(1) == labels).sum())
        return correct / len(self._test)


class StepsAlone:
    """The steps that ours takes, on one batch that lies ready: no loop over these can be faster.

    Args:
        like: Whose number of images an epoch has.
    """

    def __init__(self, case: Case, *, like: Facts) -> None:
        keep_freed_memory()
        begin = time.perf_counter()
        model = network(case, seed=0).train()
        execution = Execution(channels_last=gains_from_channels_last(model, CPU))
        images = torch.randn(case.batch_size, case.channels, case.image_size, case.image_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=MOMENTUM)
        labels = torch.randint(10, (case.batch_size,))
        self._step = partial(one_step, model, optimizer, images, labels, execution)
        self._steps = -(-like.images // case.batch_size)
        self.facts = replace(like, start_seconds=time.perf_counter() - begin)

    def seconds(self) -> float:
        """As many steps as an epoch has; how long they took."""
        return sum(self._step() for _ in range(self._steps))


class Apart:
    """A loop in a process of its own, whose memory and threads are no one else's."""

    def __init__(self, make: Callable[[], Ours | Plain | StepsAlone]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, make))
        self._process.start()
        self.facts: Facts = self._connection.recv()

    def seconds(self) -> float:
        """Train an epoch; how long it took."""
        self._connection.send(True)
        return float(self._connection.recv())

    def end(self) -> None:
        """End the process."""
        self._connection.send(False)
        self._process.join()


def serve(connection: Connection, make: Callable[[], Ours | Plain | StepsAlone]) -> None:
    """Train an epoch whenever asked."""
    loop = make()
    connection.send(loop.facts)
    while connection.recv():
        connection.send(loop.seconds())


def recipe(case: Case, folders: Folders, *, epochs: int, limit: int | None, seed: int) -> Config:
    """Ours, but for what the case says, has the defaults."""
    flags = {
        "model.name": case.model,
        "data.name": case.data,
        "data.dir": folders.of(case),
        "data.limit": limit,
        "data.validation_share": VALIDATION_SHARE,
        "data.augment.pad": case.pad,
        "data.augment.flip": case.flip,
        "penalty.name": "none",
        "optimizer.lr": case.lr,
        "optimizer.momentum": MOMENTUM,
        "schedule.batch_size": case.batch_size,
        "schedule.epochs": epochs,
        "schedule.lr_schedule": case.lr_schedule,
        "run.seed": seed,
        "run.device": "cpu",
    }
    return resolve(flags=flags)


def network(case: Case, seed: int) -> nn.Module:
    """The same weights as ours starts from."""
    seed_everything(seed)
    return build(case.model, num_classes=10, in_channels=case.channels, image_size=case.image_size)


def dataset(case: Case, folders: Folders, transform: Callable[[Any], Tensor], *, train: bool) -> Any:
    """Torchvision's own."""
    if case.data == "mnist":
        return torchvision.datasets.MNIST(unpacked_mnist(folders), train=train, transform=transform)
    return torchvision.datasets.ImageFolder(folders.cifar / ("train" if train else "test"), transform=transform)


def unpacked_mnist(folders: Folders) -> Path:
    """A copy of MNIST's files as torchvision reads them."""
    root = folders.scratch / "mnist"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for packed in (folders.mnist / "MNIST" / "raw").glob("*.gz"):
        target = raw / packed.stem
        if not target.exists():
            target.write_bytes(gzip.decompress(packed.read_bytes()))
    return root


def training_indices(labels: Tensor, *, limit: int | None, seed: int) -> Tensor:
    """As many images of each class as ours trains on, chosen in the same way."""
    chosen = torch.arange(len(labels)) if limit is None else stratified_choice(labels, limit, seed=seed)
    held_out = stratified_choice(labels[chosen], round(VALIDATION_SHARE * len(chosen)), seed=seed)
    return chosen[complement(held_out, len(chosen))]


def speeds(case: Case, folders: Folders, *, rounds: int, limit: int | None) -> Iterator[tuple[str, ...]]:
    """The rows of one case: each loop's images a second, and ours over the better plain one."""
    ours = Apart(partial(Ours, case, folders, epochs=rounds + 2, limit=limit, seed=0))
    loops = {OURS: ours}
    for workers in WORKERS:
        make = partial(Plain, case, folders, epochs=rounds + 2, workers=workers, like=ours.facts, limit=limit, seed=0)
        loops[f"plain, num_workers={workers}"] = Apart(make)
    best_of = tuple(loops)[1:]
    loops[STEPS] = Apart(partial(StepsAlone, case, like=ours.facts))
    for loop in loops.values():
        loop.seconds()  # memory is allocated, worker processes have started
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            rates[name].append(ours.facts.images / loop.seconds())
    for loop in loops.values():
        loop.end()
    best = max(best_of, key=lambda name: statistics.median(rates[name]))
    over_best = {
        name: spread([one / other for one, other in zip(rates[name], rates[best], strict=True)], ".2f")
        for name in (OURS, STEPS)
    }
    shown = over_best | {OURS: f"{over_best[OURS]} (asked: {case.target:g})", best: "1"}
    for name, loop in loops.items():
        start = f"{loop.facts.start_seconds:.1f}"
        yield case.title, name, start, spread(rates[name], ",.0f"), shown.get(name, "")


def accuracies(case: Case, folders: Folders, *, seeds: int, limit: int | None) -> Iterator[tuple[str, ...]]:
    """One row for each seed, and one for the means."""
    found: list[tuple[float, float]] = []
    for seed in range(seeds):
        ours = Ours(case, folders, epochs=case.epochs, limit=limit, seed=seed)
        plain = Plain(case, folders, epochs=case.epochs, workers=WORKERS[0], like=ours.facts, limit=limit, seed=seed)
        for _ in range(case.epochs):
            ours.epoch()
            plain.seconds()
        found.append((ours.accuracy(), plain.accuracy()))
        yield case.title, str(case.epochs), str(seed), *(f"{100 * share:.2f} %" for share in found[-1]), ""
    means = [100 * statistics.mean(side) for side in zip(*found, strict=True)]
    gap = f"{means[0] - means[1]:+.2f} points (asked: within 0.3)"
    if seeds > 1:
        error = math.sqrt(sum(statistics.variance(side) for side in zip(*found, strict=True)) / seeds)
        gap += f", standard error {100 * error:.2f}"
    yield case.title, str(case.epochs), "mean", *(f"{mean:.2f} %" for mean in means), gap


def layout_rows(names: list[str], *, steps: int, batch_size: int) -> Iterator[tuple[str, ...]]:
    """One row for each network."""
    keep_freed_memory()
    for name in names:
        grey = name.startswith("lenet")
        channels, size = (1, 28) if grey else (3, 32)
        seed_everything(0)
        model = build(name, num_classes=10, in_channels=channels, image_size=size).train()
        images, labels = torch.randn(batch_size, channels, size, size), torch.randint(10, (batch_size,))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=MOMENTUM)
        executions = [Execution(channels_last=False), Execution(channels_last=True)]
        step = partial(one_step, model, optimizer, images, labels)
        measured: list[tuple[float, ...]] = []
        for number in count():
            taken = tuple(step(execution) for execution in executions)
            measured += [taken] * (number > 0)  # the first step allocates
            if number == steps:
                break
        first, last = (statistics.median(side) for side in zip(*measured, strict=True))
        gains = spread([one / other for one, other in measured], ".2f")
        yield name, f"{batch_size}", f"{1000 * first:.1f}", f"{1000 * last:.1f}", gains


def one_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, execution: Execution
) -> float:
    """Seconds of one training step."""
    begin = time.perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(execution(model, images), labels).backward()
    optimizer.step()
    return time.perf_counter() - begin


def spread(values: list[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "accuracy", "layouts"])
    parser.add_argument("names", nargs="*", help="lenet5, resnet20; for layouts any model; default: all")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="holds MNIST/raw")
    parser.add_argument("--cifar-dir", type=Path, default=Path("runs/cifar10-jpeg"), help="holds train/ and test/")
    parser.add_argument("--scratch", type=Path, default=Path("runs/throughput"), help="for copies and run directories")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each loop that count")
    parser.add_argument("--seeds", type=int, default=3, help="of accuracy")
    parser.add_argument("--steps", type=int, default=11, help="of layouts")
    parser.add_argument("--batch-size", type=int, default=64, help="of layouts")
    parser.add_argument("--images", type=int, help="a tenth of them for validation; by default all that there are")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    words = [arguments.what, *arguments.names, *(["--images", str(arguments.images)] if arguments.images else [])]
    words += ["--rounds", str(arguments.rounds)] if arguments.what == "speed" else []
    command = f"python experiments/throughput.py {' '.join(words)}"
    page = Page("Images a second in training", command, about(__doc__), environment())
    folders = Folders(arguments.data_dir, arguments.cifar_dir, arguments.scratch)
    if arguments.what == "layouts":
        rows = layout_rows(arguments.names or list(MODELS), steps=arguments.steps, batch_size=arguments.batch_size)
        page.table(("network", "batch", "channels-first, ms a step", "channels-last", "times as fast"), rows)
    for name in (arguments.names or CASES) if arguments.what != "layouts" else ():
        case, limit = CASES[name], arguments.images
        if arguments.what == "speed":
            rows = speeds(case, folders, rounds=arguments.rounds, limit=limit)
            page.table(("training", "loop", "start, s", "images a second", "ours over the better"), rows)
        else:
            rows = accuracies(case, folders, seeds=arguments.seeds, limit=limit)
            page.table(("training", "epochs", "seed", "compress train", "plain", "difference"), rows)
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
